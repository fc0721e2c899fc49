//! Which backend answers: the one that is expected to be done first. Touches nothing; time and facts come as arguments.
//!
//! Promise: the same facts give the same order, and whoever may answer stands in it somewhere.

use std::collections::VecDeque;

use crate::order;

/// Where nothing was measured yet. Tokens a second.
const DECODE_GUESS: f64 = 30.0;
/// See `DECODE_GUESS`.
const PREFILL_GUESS: f64 = 300.0;
/// No claim of a friend is believed beyond this before it was measured. Tokens a second.
pub const CLAIM_MAX: f64 = 2000.0;
/// A conversation stays where it is unless another backend is so much better.
const STAYS: f64 = 1.5;
/// How much one answer tells of a rate.
const EWMA: f64 = 0.3;
/// Bounds of how late a backend may be taken to be.
const LATE_MIN: f64 = 0.5;
const LATE_MAX: f64 = 50.0;
/// Messages at the end of a conversation behind which its last answer is looked for.
const MARKS_MAX: usize = 64;
/// Conversations whose backend is remembered.
const AFFINITY_MAX: usize = 1024;

/// What is known of a backend that may answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// Answers at once.
    pub slots: u32,
    /// Answers under way or waiting there, those assigned a moment ago among them.
    pub busy: u32,
    /// Until the model is in memory. s.
    pub load_s: f64,
    /// Reading a prompt. Tokens a second.
    pub prefill_tps: Option<f64>,
    /// Writing an answer. Tokens a second.
    pub decode_tps: Option<f64>,
    /// There and back. s.
    pub round_trip_s: f64,
    /// Tokens of prompt and answer together; 0: not known.
    pub context: u32,
    /// Thousand million parameters of the model.
    pub params: Option<f64>,
    /// Of how many times the expected time its answers took.
    pub late: f64,
    /// It did not answer lately.
    pub is_down: bool,
    /// It has the beginning of this conversation in its memory.
    pub has_cache: bool,
}

/// What is to be answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Need {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Of them, those of the beginning that a backend may have in its memory.
    pub known: u32,
    /// Tokens of the answer, as expected.
    pub answer: u32,
    /// Any model will do, so larger ones are worth waiting for.
    pub any_model: bool,
}

fn rate(measured: Option<f64>, guess: f64) -> f64 {
    measured.filter(|rate| rate.is_finite() && *rate > 0.0).unwrap_or(guess).max(0.001)
}

/// When the answer is expected to be there. s.
pub fn finish_s(facts: &Facts, need: &Need) -> f64 {
    let (prefill, decode) = (rate(facts.prefill_tps, PREFILL_GUESS), rate(facts.decode_tps, DECODE_GUESS));
    let fresh = if facts.has_cache { need.prompt.saturating_sub(need.known) } else { need.prompt };
    let own = f64::from(fresh) / prefill + f64::from(need.answer) / decode;
    let slots = facts.slots.max(1);
    // Whoever is ahead is half done, on the average.
    let ahead = f64::from(facts.busy.saturating_add(1).saturating_sub(slots));
    let whole = f64::from(need.prompt) / prefill + f64::from(need.answer) / decode;
    let queue = if ahead > 0.0 { (ahead - 0.5) * whole / f64::from(slots) } else { 0.0 };
    let expected = queue + facts.load_s + own;
    facts.round_trip_s + expected * facts.late.clamp(LATE_MIN, LATE_MAX)
}

/// Indexes of `facts`, the one to ask first in front. Those that did not answer lately stand behind the others, and those
/// whose context is too small behind them.
pub fn order(facts: &[Facts], need: &Need) -> Vec<usize> {
    let total = need.prompt.saturating_add(need.answer.min(64));
    let rank = |at: &usize| {
        let facts = &facts[*at];
        let mut score = finish_s(facts, need);
        if facts.has_cache {
            score /= STAYS;
        }
        if need.any_model {
            score /= facts.params.unwrap_or(1.0).clamp(0.1, 1000.0).sqrt();
        }
        // The estimate of tokens is rough: only what cannot fit is put behind.
        let is_small = facts.context > 0 && total / 2 > facts.context;
        (is_small, facts.is_down, score, facts.context)
    };
    let mut order: Vec<(usize, _)> = (0..facts.len()).map(|at| (at, rank(&at))).collect();
    order::sort_by(&mut order, |(a, x), (b, y)| {
        let small = x.0.cmp(&y.0);
        // Of contexts that are all too small the largest is the best.
        let larger = if x.0 && y.0 { y.3.cmp(&x.3) } else { std::cmp::Ordering::Equal };
        small.then(larger).then(x.1.cmp(&y.1)).then(x.2.total_cmp(&y.2)).then(a.cmp(b))
    });
    order.into_iter().map(|(at, _)| at).collect()
}

/// A mean in which newer values count more.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Mean(Option<f64>);

impl Mean {
    /// The mean so far.
    pub fn get(self) -> Option<f64> {
        self.0
    }

    /// Takes in a value, if it is a positive number.
    pub fn add(&mut self, value: f64) {
        if value.is_finite() && value > 0.0 {
            self.0 = Some(self.0.map_or(value, |mean| mean + EWMA * (value - mean)));
        }
    }
}

/// How late a backend is, after an answer took `taken_s` where `expected_s` were expected.
pub fn late_after(late: f64, expected_s: f64, taken_s: f64) -> f64 {
    // Short answers are all noise.
    if expected_s <= 0.0 || taken_s <= 0.0 || taken_s.max(expected_s) < 0.05 {
        return late;
    }
    let seen = (late * taken_s / expected_s).clamp(LATE_MIN, LATE_MAX);
    (late + EWMA * (seen - late)).clamp(LATE_MIN, LATE_MAX)
}

/// Which backend answered a conversation last.
#[derive(Debug, Default)]
pub struct Affinity {
    kept: VecDeque<(u64, u64)>,
}

impl Affinity {
    /// `backend` has answered the conversation whose messages have these marks.
    pub fn note(&mut self, marks: &[u64], backend: u64) {
        let Some(last) = marks.last() else { return };
        self.kept.retain(|(mark, _)| mark != last);
        if self.kept.len() >= AFFINITY_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back((*last, backend));
    }

    /// The backend that answered the longest beginning of this conversation, and of how many messages.
    pub fn find(&self, marks: &[u64]) -> Option<(u64, usize)> {
        let found = |(at, mark): (usize, &u64)| {
            self.kept.iter().rev().find(|(kept, _)| kept == mark).map(|(_, backend)| (*backend, at + 1))
        };
        marks.iter().enumerate().rev().skip(1).take(MARKS_MAX).find_map(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Dice;

    fn facts(decode: f64) -> Facts {
        Facts {
            slots: 1,
            busy: 0,
            load_s: 0.0,
            prefill_tps: Some(decode * 10.0),
            decode_tps: Some(decode),
            round_trip_s: 0.001,
            context: 4096,
            params: Some(1.0),
            late: 1.0,
            is_down: false,
            has_cache: false,
        }
    }

    const NEED: Need = Need { prompt: 100, known: 80, answer: 100, any_model: false };

    #[test]
    fn the_faster_one_answers_until_its_queue_is_too_long() {
        let slow = facts(10.0);
        for busy in 0..30 {
            let fast = Facts { busy, ..facts(100.0) };
            let first = order(&[slow, fast], &NEED)[0];
            // 11 s against 1.1 s each.
            assert_eq!(first, usize::from(busy < 10), "{busy}");
        }
    }

    #[test]
    fn a_cold_model_costs_its_loading() {
        let cold = Facts { load_s: 20.0, ..facts(100.0) };
        assert_eq!(order(&[cold, facts(10.0)], &NEED), [1, 0]);
        assert_eq!(order(&[Facts { load_s: 5.0, ..cold }, facts(10.0)], &NEED), [0, 1]);
    }

    #[test]
    fn a_conversation_stays_unless_another_is_half_as_fast_again() {
        let need = Need { known: 0, ..NEED };
        let here = Facts { has_cache: true, ..facts(100.0) };
        assert_eq!(order(&[facts(140.0), here], &need)[0], 1);
        assert_eq!(order(&[facts(160.0), here], &need)[0], 0);
        // What is in memory need not be read again.
        let long = Need { prompt: 10_000, known: 9_900, answer: 10, any_model: false };
        assert_eq!(order(&[facts(1000.0), here], &long)[0], 1);
    }

    #[test]
    fn who_is_down_or_too_small_stands_behind_and_is_not_left_out() {
        let down = Facts { is_down: true, ..facts(1000.0) };
        let small = Facts { context: 40, ..facts(1000.0) };
        assert_eq!(order(&[down, small, facts(1.0)], &NEED), [2, 0, 1]);
        let smaller = Facts { context: 20, ..facts(9000.0) };
        assert_eq!(order(&[smaller, small], &NEED), [1, 0]);
    }

    #[test]
    fn larger_models_are_worth_waiting_for_where_any_will_do() {
        let any = Need { any_model: true, ..NEED };
        let large = Facts { params: Some(8.0), ..facts(20.0) };
        let tiny = Facts { params: Some(0.5), ..facts(50.0) };
        assert_eq!(order(&[tiny, large], &any), [1, 0]);
        assert_eq!(order(&[tiny, large], &NEED), [0, 1]);
        let slow = Facts { decode_tps: Some(1.0), prefill_tps: Some(5.0), ..large };
        assert_eq!(order(&[tiny, slow], &any), [0, 1]);
    }

    #[test]
    fn odd_numbers_never_panic_and_nobody_is_lost() {
        let mut dice = Dice::new(7, "router");
        let odd = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, 5.0];
        for _ in 0..2000 {
            let mut pick = || odd[dice.below(odd.len() as u64) as usize];
            let one = |pick: &mut dyn FnMut() -> f64| Facts {
                load_s: pick(),
                prefill_tps: Some(pick()),
                decode_tps: Some(pick()),
                round_trip_s: pick(),
                late: pick(),
                params: Some(pick()),
                busy: u32::MAX - 1,
                ..facts(1.0)
            };
            let all = [one(&mut pick), one(&mut pick), one(&mut pick)];
            let mut order = order(&all, &Need { prompt: u32::MAX, answer: u32::MAX, ..NEED });
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2]);
        }
    }

    #[test]
    fn whoever_lies_about_its_speed_is_found_out() {
        // It says 1,000 and writes 5 tokens a second: what is expected grows to what is seen.
        let mut liar = facts(1000.0);
        let honest = facts(50.0);
        let mut chosen = 0;
        for _ in 0..50 {
            if order(&[liar, honest], &NEED)[0] == 1 {
                continue;
            }
            chosen += 1;
            let expected = finish_s(&liar, &NEED);
            liar.late = late_after(liar.late, expected, 100.0 / 5.0 + 2.0);
        }
        assert!(chosen <= 4, "{chosen}");
    }

    #[test]
    fn affinity_is_that_of_the_longest_beginning_and_is_bounded() {
        let mut affinity = Affinity::default();
        affinity.note(&[1, 2], 7);
        affinity.note(&[1, 2, 3, 4], 8);
        assert_eq!(affinity.find(&[1, 2, 9, 10]), Some((7, 2)));
        assert_eq!(affinity.find(&[1, 2, 3, 4, 5, 6]), Some((8, 4)));
        assert_eq!(affinity.find(&[1, 5]), None);
        affinity.note(&[1, 2], 9);
        assert_eq!(affinity.find(&[1, 2, 9]), Some((9, 2)));
        for mark in 100..5000 {
            affinity.note(&[mark], 1);
        }
        assert_eq!(affinity.kept.len(), AFFINITY_MAX);
    }

    /// Backends as they would be, with queues, in virtual time.
    struct World {
        speeds: Vec<f64>,
        free_at: Vec<Vec<f64>>,
        ends: Vec<(f64, usize)>,
        known: Vec<Facts>,
    }

    impl World {
        fn new(speeds: &[f64], slots: usize) -> Self {
            let known = speeds.iter().map(|_| Facts {
                prefill_tps: None,
                decode_tps: None,
                slots: slots as u32,
                ..facts(1.0)
            });
            Self {
                speeds: speeds.to_vec(),
                free_at: vec![vec![0.0; slots]; speeds.len()],
                ends: Vec::new(),
                known: known.collect(),
            }
        }

        fn run(&self, at: usize, now: f64, need: &Need) -> f64 {
            let took =
                f64::from(need.answer) / self.speeds[at] + f64::from(need.prompt) / self.speeds[at] / 10.0;
            let free = self.free_at[at].iter().copied().fold(f64::INFINITY, f64::min);
            free.max(now) + took
        }

        fn assign(&mut self, at: usize, now: f64, need: &Need) -> f64 {
            let end = self.run(at, now, need);
            let slots = &mut self.free_at[at];
            let free = (0..slots.len()).min_by(|a, b| slots[*a].total_cmp(&slots[*b])).unwrap();
            slots[free] = end;
            self.ends.push((end, at));
            self.known[at].busy += 1;
            end
        }

        fn pass(&mut self, now: f64) {
            let speeds = &self.speeds;
            let known = &mut self.known;
            self.ends.retain(|(end, at)| {
                if *end > now {
                    return true;
                }
                known[*at].busy -= 1;
                known[*at].decode_tps = Some(speeds[*at]);
                known[*at].prefill_tps = Some(speeds[*at] * 10.0);
                false
            });
        }
    }

    /// With backends of 10:1 in speed nine of ten answers come from the fast one, and what is chosen costs at most a tenth
    /// more than what a seer would choose.
    #[test]
    fn over_many_seeds_the_choice_is_close_to_a_seers() {
        for seed in 0..200 {
            let mut dice = Dice::new(seed, "router");
            let (mut world, mut seer) = (World::new(&[50.0, 5.0], 2), World::new(&[50.0, 5.0], 2));
            let (mut now, mut took, mut best, mut fast) = (0.0, 0.0, 0.0, 0);
            let count = 400;
            for _ in 0..count {
                now += dice.below(4000) as f64 / 1000.0;
                let need = Need {
                    prompt: 20 + dice.below(400) as u32,
                    known: 0,
                    answer: 20 + dice.below(200) as u32,
                    any_model: false,
                };
                world.pass(now);
                let at = order(&world.known, &need)[0];
                fast += usize::from(at == 0);
                took += world.assign(at, now, &need) - now;
                seer.pass(now);
                let at = if seer.run(0, now, &need) <= seer.run(1, now, &need) { 0 } else { 1 };
                best += seer.assign(at, now, &need) - now;
            }
            assert!(fast * 10 >= count * 9, "seed {seed}: {fast} of {count}");
            assert!(took <= best * 1.10, "seed {seed}: {took} against {best}");
        }
    }

    /// Requests that come in a burst are spread at once: each is counted when it is assigned.
    #[test]
    fn a_burst_is_spread_before_any_answer_ends() {
        let mut world = World::new(&[50.0, 50.0], 2);
        world.known.iter_mut().for_each(|facts| facts.decode_tps = Some(50.0));
        let mut counts = [0, 0];
        for _ in 0..20 {
            let at = order(&world.known, &NEED)[0];
            counts[at] += 1;
            world.assign(at, 0.0, &NEED);
        }
        assert_eq!(counts, [10, 10]);
    }
}
