//! Columns of text.

/// Replaces what would move a terminal's cursor, or worse.
pub fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control(), "?")
}

/// Rows of cells under a head. Columns of numbers are aligned to the right.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Begins one.
    pub fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, which has as many cells as the head.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<_> = cells.into_iter().map(|cell| plain(&cell)).collect();
        debug_assert_eq!(cells.len(), self.head.len());
        self.rows.push(cells);
    }

    /// Tells whether there is nothing under the head.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes it, a line a row.
    pub fn lines(&self) -> Vec<String> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.head[column].len()]).max().unwrap_or(0)
        };
        let number = |column: usize| {
            let mut cells = self.rows.iter().map(|row| &row[column]);
            !self.rows.is_empty() && cells.all(|cell| is_number(cell))
        };
        let columns: Vec<_> = (0..self.head.len())
            .map(|n| (width(n), number(n)))
            .collect();
        let head = self.head.iter().map(|cell| (*cell).to_owned()).collect();
        let all = std::iter::once(&head).chain(&self.rows);
        all.map(|row: &Vec<String>| {
            let cells = row.iter().zip(&columns);
            let cells = cells.map(|(cell, (width, right))| match right {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
    }
}

/// A number, with its unit, or that there is none.
fn is_number(cell: &str) -> bool {
    matches!(cell, "" | "-") || cell.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_numbers_stand_right() {
        let mut table = Table::new(&["ID", "COUNT", "WHAT"]);
        table.row(["a".into(), "7".into(), String::new()]);
        table.row(["long\n".into(), "1234567".into(), "x".into()]);
        assert_eq!(
            table.lines(),
            [
                "ID       COUNT  WHAT",
                "a            7",
                "long?  1234567  x"
            ]
        );
        assert_eq!(Table::new(&["ID"]).lines(), ["ID"]);
    }
}
