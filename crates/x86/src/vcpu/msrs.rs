//! A list of model-specific registers.

use serde::{Deserialize, Serialize};

use crate::msr;

/// Model-specific registers by number, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u32, u64)>", into = "Vec<(u32, u64)>")]
pub struct Msrs(Vec<(u32, u64)>);

/// A list that is not sorted, or has a number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MSR {0:#x} is not behind the one before it: the list is sorted, each number once")]
pub struct BadMsrs(pub u32);

/// Tells whether MSR `number` is part of another field of [`VcpuState`](super::VcpuState), where a
/// list must not repeat it: the time-stamp counter, EFER, the bases of FS and GS, the registers of
/// an x2APIC.
pub const fn elsewhere(number: u32) -> bool {
    matches!(
        number,
        msr::TSC | msr::EFER | msr::FS_BASE | msr::GS_BASE | msr::X2APIC_FIRST..=msr::X2APIC_LAST
    )
}

impl Msrs {
    /// Returns the value of MSR `number`, if it is listed.
    pub fn get(&self, number: u32) -> Option<u64> {
        let at = self.0.binary_search_by_key(&number, |msr| msr.0).ok()?;
        Some(self.0[at].1)
    }

    /// Lists MSR `number`, or changes its value.
    pub fn set(&mut self, number: u32, value: u64) {
        match self.0.binary_search_by_key(&number, |msr| msr.0) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (number, value)),
        }
    }

    /// Numbers and values, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> {
        self.0.iter().copied()
    }
}

impl FromIterator<(u32, u64)> for Msrs {
    /// The last value of a number counts.
    fn from_iter<I: IntoIterator<Item = (u32, u64)>>(list: I) -> Self {
        let mut msrs = Self::default();
        list.into_iter()
            .for_each(|(number, value)| msrs.set(number, value));
        msrs
    }
}

impl TryFrom<Vec<(u32, u64)>> for Msrs {
    type Error = BadMsrs;

    fn try_from(list: Vec<(u32, u64)>) -> Result<Self, BadMsrs> {
        match list.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            Some(pair) => Err(BadMsrs(pair[1].0)),
            None => Ok(Self(list)),
        }
    }
}

impl From<Msrs> for Vec<(u32, u64)> {
    fn from(msrs: Msrs) -> Self {
        msrs.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_sorted_however_it_was_made() {
        let msrs: Msrs = [(9, 1), (3, 2), (9, 3)].into_iter().collect();
        assert_eq!(Vec::from(msrs.clone()), [(3, 2), (9, 3)]);
        assert_eq!((msrs.get(9), msrs.get(4)), (Some(3), None));
    }

    #[test]
    fn a_list_from_outside_must_be_sorted_without_repetition() {
        assert_eq!(Msrs::try_from(vec![(1, 0), (1, 0)]), Err(BadMsrs(1)));
        assert_eq!(Msrs::try_from(vec![(2, 0), (1, 0)]), Err(BadMsrs(1)));
        assert!(Msrs::try_from(vec![(1, 0), (2, 0)]).is_ok());
    }
}
