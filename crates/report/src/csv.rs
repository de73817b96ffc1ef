//! `metrics.csv`: the metrics as spreadsheets read them.

use crate::lines::{Column, Lines, Table};
use serde_json::Number;
use std::fmt::Write as _;

/// What the columns of allocations begin with.
const ALLOCATE: &str = "allocate_";

/// A row for each step with what was logged of it, training, evaluation and allocation side by side: `step`, the keys of
/// training lines, those of evaluations, then `allocate_` and a number of an allocation (its ranks by module are summed).
/// What a step lacks, and what is not finite, is an empty cell. Lines end as RFC 4180 says.
#[must_use]
pub fn csv(lines: &Lines) -> String {
    let tables = [
        (&lines.steps, ""),
        (&lines.evaluations, ""),
        (&lines.events, ALLOCATE),
    ];
    let named = |(table, prefix): (&'_ Table, &str)| {
        let columns = table.columns().iter();
        let names = columns.map(|column| quoted(&format!("{prefix}{}", column.key())));
        names.collect::<Vec<String>>()
    };
    let names = tables.into_iter().flat_map(named);
    let mut text = joined(std::iter::once("step".to_owned()).chain(names));
    let columns = tables.iter().flat_map(|(table, _)| table.columns());
    let mut columns: Vec<Cells<'_>> = columns.map(Cells::new).collect();
    while let Some(step) = columns.iter().filter_map(Cells::next_step).min() {
        // Writing to a string does not fail.
        let _ = write!(text, "{step}");
        for column in &mut columns {
            text.push(',');
            column.write(step, &mut text);
        }
        text += "\r\n";
    }
    text
}

/// A column that is walked down step by step.
struct Cells<'a> {
    rest: &'a [(u64, f64)],
    integers: bool,
}

impl<'a> Cells<'a> {
    fn new(column: &'a Column) -> Self {
        Self {
            rest: column.points(),
            integers: column.is_of_integers(),
        }
    }

    fn next_step(&self) -> Option<u64> {
        Some(self.rest.first()?.0)
    }

    /// The number of a step, to the last digit, which is the next one or has none; the last one that is finite, if a file
    /// has several.
    fn write(&mut self, step: u64, text: &mut String) {
        let mut found = None;
        while let Some(((of, number), rest)) = self.rest.split_first()
            && *of == step
        {
            found = Some(*number).filter(|number| number.is_finite()).or(found);
            self.rest = rest;
        }
        let Some(number) = found else { return };
        let _ = match Number::from_f64(number).filter(|_| !self.integers) {
            Some(number) => write!(text, "{number}"),
            None => write!(text, "{number}"),
        };
    }
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
