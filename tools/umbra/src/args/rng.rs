//! The entropy device, as `--rng` has it.

use umbra_vmm::RngSpec;

use super::limit;
use super::list::pairs;

/// Reads `[bandwidth=LIMIT][,ops=LIMIT]`, or nothing.
pub fn parse(text: &str) -> Result<RngSpec, String> {
    let mut spec = RngSpec::default();
    for (key, value) in pairs(text).into_iter().filter(|_| !text.is_empty()) {
        if !limit::read(&mut spec.limits, "", &key, &value)? {
            return Err(format!(
                "{key:?} is unknown; there are bandwidth= and ops=, like bandwidth=64K:1000"
            ));
        }
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_nothing_else() {
        assert_eq!(parse(""), Ok(RngSpec::default()));
        let limits = parse("ops=10,bandwidth=64K:100:1M").unwrap().limits;
        assert_eq!(limits.operations.unwrap().size, 10);
        let bandwidth = limits.bandwidth.unwrap();
        assert_eq!(
            (bandwidth.size, bandwidth.one_time_burst),
            (64 << 10, 1 << 20)
        );
        for (text, why) in [
            ("size=1", "\"size\" is unknown"),
            ("ops=0", "limits nothing"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
