//! Where results go: the terminal, and with `--record` a folder under docs/record.

use crate::bench::report::{QUIET, Report};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// What a benchmark shows.
#[derive(Debug)]
pub struct Shown {
    /// The tables.
    pub text: String,
    /// Plots: file name and SVG.
    pub plots: Vec<(String, String)>,
}

/// Prints tables and notes, and writes the record if asked.
///
/// # Errors
/// If a file cannot be written, or a cell failed: what was measured is shown and recorded all the same.
pub fn publish(root: &Path, report: &Report, shown: &Shown, record: Option<&str>) -> Result<()> {
    let text = document(report, shown);
    eprintln!("\n{text}");
    if let Some(word) = record {
        let mut name = format!(
            "{}-{}-{}",
            report.date,
            report.machine.slug(),
            report.benchmark
        );
        if !word.is_empty() {
            name = format!("{name}-{word}");
        }
        let folder = root.join("docs/record").join(&name);
        fs::create_dir_all(&folder)?;
        let write = |file: &str, text: &str| {
            let path = folder.join(file);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        let mut json = serde_json::to_string_pretty(&report.to_json())?;
        json.push('\n');
        write("results.json", &json)?;
        write("table.md", &markdown(report, shown))?;
        for (file, svg) in &shown.plots {
            write(file, svg)?;
        }
        eprintln!("recorded in docs/record/{name}");
    }
    let failed: Vec<&str> = report
        .cells
        .iter()
        .filter(|cell| cell.error.is_some())
        .map(|cell| cell.name.as_str())
        .collect();
    ensure!(
        failed.is_empty(),
        "could not be measured: {}",
        failed.join(", ")
    );
    Ok(())
}

/// The machine, the tables, and what they say.
fn document(report: &Report, shown: &Shown) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}, {} cores, {} MiB, {} ({} kernels); commit {}\n\n{}",
        machine.cpu,
        machine.cores,
        machine.memory_mib,
        machine.system,
        machine.simd,
        report.commit,
        shown.text
    );
    if !report.ratios.is_empty() {
        text.push('\n');
    }
    for ratio in &report.ratios {
        let mark = if ratio.disturbed {
            "NOT VALID, disturbed: "
        } else {
            ""
        };
        text.push_str(&format!(
            "{mark}{}: {:.2} (by the best samples {:.2}): {} against {}\n",
            ratio.what, ratio.by_median, ratio.by_min, ratio.cells.0, ratio.cells.1
        ));
    }
    let disturbed = report.cells.iter().filter(|cell| cell.disturbed()).count();
    if disturbed > 0 {
        text.push_str(&format!(
            "\n{disturbed} of {} cells ran while other processes took more than {:.0} % of the machine: their times, and ratios and \
             fits of them, are no results. Run it again on a quiet machine.\n",
            report.cells.len(),
            100.0 * QUIET
        ));
    }
    if !report.notes.is_empty() {
        text.push('\n');
    }
    for note in &report.notes {
        text.push_str(note);
        text.push('\n');
    }
    for cell in &report.cells {
        if let Some(error) = &cell.error {
            text.push_str(&format!("{}: {error}\n", cell.name));
        }
    }
    text
}

fn markdown(report: &Report, shown: &Shown) -> String {
    let versions: Vec<String> = report
        .versions
        .iter()
        .map(|(name, version)| format!("{name} {}", version.as_str().unwrap_or_default()))
        .collect();
    let mut text = format!(
        "# {}, {}\n\n```sh\n{}\n```\n\n{}. The samples are in `results.json`.\n\n```text\n{}```\n",
        report.benchmark,
        report.date,
        report.command,
        versions.join(", "),
        document(report, shown)
    );
    for (file, _) in &shown.plots {
        text.push_str(&format!("\n![{file}]({file})\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::report::{Cell, Side};
    use serde_json::{Map, Value};

    #[test]
    fn a_record_is_written_even_if_a_cell_failed() -> Result<()> {
        let root = tempfile::tempdir()?;
        let failed = Cell {
            name: "bf16".to_owned(),
            side: Side::Ours,
            axes: Map::new(),
            rounds: Vec::new(),
            error: Some("not yet supported".to_owned()),
        };
        let report = Report {
            benchmark: "step",
            date: "2026-01-31".to_owned(),
            machine: Machine {
                cpu: "AMD EPYC".to_owned(),
                ..Machine::default()
            },
            versions: Map::from_iter([("rustc".to_owned(), "1.95.0".into())]),
            commit: "abc".to_owned(),
            command: "cargo xtask bench step --record".to_owned(),
            cells: vec![failed],
            ratios: Vec::new(),
            notes: vec!["The fit is good.".to_owned()],
            fits: Vec::new(),
        };
        let shown = Shown {
            text: "cell\n".to_owned(),
            plots: vec![("growth.svg".to_owned(), "<svg/>".to_owned())],
        };
        let error =
            publish(root.path(), &report, &shown, Some("again")).expect_err("a cell failed");
        assert!(error.to_string().contains("bf16"), "{error}");
        let folder = root
            .path()
            .join("docs/record/2026-01-31-amd-epyc-step-again");
        let json: Value = serde_json::from_str(&fs::read_to_string(folder.join("results.json"))?)?;
        assert_eq!(json["cells"][0]["error"], "not yet supported");
        let table = fs::read_to_string(folder.join("table.md"))?;
        for part in [
            "--record",
            "rustc 1.95.0",
            "The fit is good.",
            "bf16: not yet",
            "![growth.svg]",
        ] {
            assert!(table.contains(part), "{part} in {table}");
        }
        assert_eq!(fs::read_to_string(folder.join("growth.svg"))?, "<svg/>");
        Ok(())
    }
}
