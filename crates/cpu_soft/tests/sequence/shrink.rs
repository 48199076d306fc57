//! Makes a case that differs as small as it can be.

use super::Case;

/// Drops instructions, and simplifies what is around them, while `differs` says that the difference
/// is still there.
pub fn shrink(mut case: Case, mut differs: impl FnMut(&Case) -> bool) -> Case {
    loop {
        let before = case.steps.len();
        for len in [8, 4, 2, 1] {
            let mut at = 0;
            while at < case.steps.len() {
                let mut smaller = case.clone();
                let end = smaller.steps.len().min(at + len);
                smaller.steps.drain(at..end);
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
