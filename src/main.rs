//! Words in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(grove::cli::main(&grove::cli::inside::Inside))
}
