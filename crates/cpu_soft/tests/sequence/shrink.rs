//! Makes a case that differs as small as it can be.

use super::Case;

/// The steps from `at`, with all that make sense only together.
fn whole(case: &Case, at: usize, len: usize) -> std::ops::Range<usize> {
    let alone = |i: &usize| case.steps.get(*i).is_none_or(|step| !step.joined);
    let from = (0..=at).rev().find(alone).unwrap_or(0);
    let to = case.steps.len().min(at + len);
    from..(to..).find(alone).unwrap_or(to)
}

/// Drops instructions, and simplifies what is around them, while `differs` says that the difference
/// is still there.
pub fn shrink(mut case: Case, mut differs: impl FnMut(&Case) -> bool) -> Case {
    loop {
        let before = case.steps.len();
        for len in [8, 4, 2, 1] {
            let mut at = 0;
            while at < case.steps.len() {
                let mut smaller = case.clone();
                smaller.steps.drain(whole(&case, at, len));
                if differs(&smaller) {
                    case = smaller;
                } else {
                    at += len;
                }
            }
        }
        if case.steps.len() == before {
            break;
        }
    }
    let simpler: [fn(&mut Case); 4] = [
        |case| case.flags = 0,
        |case| case.start = super::WINDOW + 0x80,
        |case| case.memory.fill(0),
        |case| case.fx[32..].fill(0),
    ];
    for simplify in simpler {
        let mut smaller = case.clone();
        simplify(&mut smaller);
        if differs(&smaller) {
            case = smaller;
        }
    }
    for i in 0..16 {
        let mut smaller = case.clone();
        smaller.gpr[i] = 0;
        if differs(&smaller) {
            case = smaller;
        }
    }
    case
}
