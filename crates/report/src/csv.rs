//! `metrics.csv`: the metrics as spreadsheets read them.

use crate::lines::{Line, Lines, ranks};
use std::collections::BTreeMap;

/// What the columns of allocations begin with.
const ALLOCATE: &str = "allocate_";

/// A row for each step with what was logged of it, training, evaluation and allocation side by side: `step`, the keys of
/// training lines, those of evaluations, then `allocate_` and a number of an allocation (its ranks by module are summed).
/// What a step lacks, and what is not finite, is an empty cell. Lines end as RFC 4180 says.
#[must_use]
pub fn csv(lines: &Lines) -> String {
    let mut columns: Vec<String> = Vec::new();
    let mut rows: BTreeMap<u64, BTreeMap<usize, String>> = BTreeMap::new();
    let mut put = |columns: &mut Vec<String>, step: u64, name: String, cell: Option<String>| {
        let known = columns.iter().position(|column| *column == name);
        let at = known.unwrap_or_else(|| {
            columns.push(name);
            columns.len() - 1
        });
        let row = rows.entry(step).or_default();
        if let Some(cell) = cell {
            row.insert(at, cell);
        }
    };
    let training = lines.steps.iter().map(|line| (line, ""));
    let held_out = lines.evaluations.iter().map(|line| (line, ""));
    let allocations = lines.events.iter().map(|line| (line, ALLOCATE));
    for (line, prefix) in training.chain(held_out).chain(allocations) {
        for (key, cell) in cells(line) {
            let name = format!("{prefix}{key}");
            put(&mut columns, line.step, name, cell);
        }
    }
    let head = std::iter::once("step".to_owned()).chain(columns.iter().map(|name| quoted(name)));
    let mut text = joined(head);
    for (step, mut row) in rows {
        let cells = (0..columns.len()).map(|at| row.remove(&at).unwrap_or_default());
        text += &joined(std::iter::once(step.to_string()).chain(cells));
    }
    text
}

/// Numbers as the file has them, to the last digit.
fn cells(line: &Line) -> impl Iterator<Item = (&str, Option<String>)> {
    let numbers = line.numbers().map(|(key, number)| {
        let cell = number.and_then(|_| Some(line.values.get(key)?.to_string()));
        (key, cell)
    });
    let ranks = ranks(line).map(|ranks| ranks.iter().map(|(_, rank)| rank).sum::<u64>());
    numbers.chain(ranks.map(|sum| ("ranks", Some(sum.to_string()))))
}

fn joined(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.collect();
    format!("{}\r\n", cells.join(","))
}

/// The name of a column. A spreadsheet takes what begins with one of four signs for a formula.
fn quoted(name: &str) -> String {
    let formula = name.starts_with(['=', '+', '-', '@']);
    let name = if formula {
        format!("'{name}")
    } else {
        name.to_owned()
    };
    if name.contains([',', '"', '\n', '\r', '\'']) {
        return format!("\"{}\"", name.replace('"', "\"\""));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_row_and_a_key_a_column() {
        let text = "{\"step\":0,\"eval_loss\":3.5,\"eval_tokens\":40}\n\
                    {\"step\":1,\"loss\":3.25,\"lr\":1e-05,\"grad_norm\":null}\n\
                    {\"step\":1,\"event\":\"allocate\",\"budget\":7,\"ranks\":{\"a\":3,\"b\":4}}\n\
                    {\"step\":2,\"loss\":3.0,\"lr\":0.30000000000000004,\"grad_norm\":0.5,\"aux_loss\":0.125}\n\
                    {\"step\":2,\"eval_loss\":null,\"eval_tokens\":40,\"eval_accuracy\":0.75}\n";
        assert_eq!(
            csv(&Lines::parse(text)),
            "step,loss,lr,grad_norm,aux_loss,eval_loss,eval_tokens,eval_accuracy,allocate_budget,allocate_ranks\r\n\
             0,,,,,3.5,40,,,\r\n\
             1,3.25,0.00001,,,,,,7,7\r\n\
             2,3.0,0.30000000000000004,0.5,0.125,,40,0.75,,\r\n"
        );
        assert_eq!(csv(&Lines::default()), "step\r\n");
    }

    #[test]
    fn names_of_columns_are_no_formulas_and_do_not_split() {
        let text = "{\"step\":1,\"=1+1\":2,\"a,\\\"b\\\"\":3,\"plain\":4,\"words\":\"=x\"}\n";
        assert_eq!(
            csv(&Lines::parse(text)),
            "step,\"'=1+1\",\"a,\"\"b\"\"\",plain\r\n1,2,3,4\r\n"
        );
    }
}
