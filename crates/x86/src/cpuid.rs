//! What CPUID answers, as a table (SDM vol. 2, CPUID).

/// The four registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// One row of a [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// EAX on entry.
    pub function: u32,
    /// ECX on entry, for functions that look at it.
    pub index: Option<u32>,
    /// The answer.
    pub leaf: Leaf,
}

/// Every leaf that one virtual processor shows; what is not listed reads as zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a leaf, or replaces the one of the same function and index.
    pub fn set(&mut self, function: u32, index: Option<u32>, leaf: Leaf) {
        match self
            .rows
            .iter_mut()
            .find(|r| r.function == function && r.index == index)
        {
            Some(row) => row.leaf = leaf,
            None => self.rows.push(Row {
                function,
                index,
                leaf,
            }),
        }
    }

    /// Returns what CPUID answers for `function` and `index`.
    pub fn get(&self, function: u32, index: u32) -> Leaf {
        self.rows
            .iter()
            .find(|r| r.function == function && r.index.is_none_or(|i| i == index))
            .map_or_else(Leaf::default, |r| r.leaf)
    }

    /// Returns the width of physical addresses: what leaf 0x80000008 says, 36 without it.
    pub fn physical_bits(&self) -> u32 {
        match self.get(0x8000_0008, 0).eax & 0xff {
            0 => 36,
            bits => bits,
        }
    }

    /// Returns all rows, in the order in which they were added.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}
