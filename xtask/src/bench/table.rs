//! Plain tables.

/// Rows under a head, columns padded; the first column is text, the others are numbers and stand to the right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|&word| word.to_owned()).collect();
    let all = || std::iter::once(&head).chain(rows);
    let width = |column: usize| {
        let cells = all().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for (at, row) in all().enumerate() {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                if column == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
        if at == 0 {
            let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            text.push_str(&rules.join("  "));
            text.push('\n');
        }
    }
    text
}

/// A number with `digits` after the point; a dash where there is none.
pub fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// A share as a percentage.
pub fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.0} %", 100.0 * value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["f32".to_owned(), number(Some(2.0), 3), percent(Some(0.705))],
            vec![
                "bf16, recomputed".to_owned(),
                number(None, 3),
                "12345 %".to_owned(),
            ],
        ];
        let expected = "\
            cell              s/step    share\n\
            ----------------  ------  -------\n\
            f32                2.000     70 %\n\
            bf16, recomputed       -  12345 %\n";
        assert_eq!(table(&["cell", "s/step", "share"], &rows), expected);
    }
}
