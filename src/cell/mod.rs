//! An open cell: opens everything, starts one task per duty, stops them in order.

pub mod keeper;
pub mod open;
