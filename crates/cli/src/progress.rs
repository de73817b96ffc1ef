//! How a run shows itself: a bar on a terminal, plain lines otherwise. Everything goes to stderr.

use crate::signals::Signals;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lowrank::training::{EvalLine, Progress, Started, StepLine};
use std::io::IsTerminal;
use std::path::Path;

/// Shows a run on stderr.
pub struct Shown {
    bar: ProgressBar,
    lines: Lines,
    total: u64,
    before: Option<EvalLine>,
    signals: Signals,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// Beside the bar of a terminal.
    Beside,
    /// A line every so many steps.
    Alone,
    /// Nothing.
    Quiet,
}

impl Shown {
    /// Decides by what stderr is, and by `--quiet`.
    pub fn new(quiet: bool) -> Self {
        let lines = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Lines::Quiet,
            (false, true) => Lines::Beside,
            (false, false) => Lines::Alone,
        };
        let bar = ProgressBar::new(0);
        if lines != Lines::Beside {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self {
            bar,
            lines,
            total: 0,
            before: None,
            signals: Signals::default(),
        }
    }

    /// What was measured before the first step; none if there is nothing to measure on, or if the run was resumed.
    pub const fn before(&self) -> Option<&EvalLine> {
        self.before.as_ref()
    }

    /// What the run was stopped by.
    pub const fn signals(&self) -> &Signals {
        &self.signals
    }

    fn line(&self, text: &str) {
        match self.lines {
            Lines::Beside => self.bar.println(text),
            Lines::Alone => crate::say(text),
            Lines::Quiet => {}
        }
    }
}

impl Progress for Shown {
    fn started(&mut self, start: &Started) {
        // Not earlier: what is loaded until now need not be waited for.
        if let Err(error) = self.signals.catch() {
            self.warning(&format!("signals end the run at once: {error}"));
        }
        self.total = start.total;
        self.bar.set_length(start.total);
        self.bar.set_position(start.done);
        // The template is a constant, so it is sound; a plain bar would do as well.
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} eta {eta}") {
            self.bar.set_style(style);
        }
        if let Some(path) = &start.resumed_from {
            self.line(&format!("resuming from {}", path.display()));
        }
        self.line(&format!(
            "{} steps over {} rows, {} trainable parameters",
            start.total, start.rows, start.trainable_parameters
        ));
    }

    fn step(&mut self, line: &StepLine) {
        let loss = shown("loss", line.loss.unwrap_or(f64::NAN));
        self.bar.set_position(line.step);
        self.bar.set_message(format!("loss {loss}"));
        let every = (self.total / 20).max(1);
        if self.lines == Lines::Alone && (line.step.is_multiple_of(every) || line.step == 1) {
            crate::say(&format!(
                "step {}/{}  loss {loss}  lr {:.3e}  {:.0} tokens/s",
                line.step, self.total, line.lr, line.tokens_per_second
            ));
        }
    }

    fn evaluated(&mut self, line: &EvalLine) {
        let when = match line.step {
            0 => "before training".to_owned(),
            step => format!("after step {step}"),
        };
        let loss = shown("loss", line.eval_loss.unwrap_or(f64::NAN));
        let metrics = line.metrics.iter();
        let metrics = metrics.map(|(name, &value)| format!(", {name} {}", shown(name, value)));
        let metrics: String = metrics.collect();
        self.line(&format!("{when}: held-out loss {loss}{metrics}"));
        if line.step == 0 {
            self.before = Some(line.clone());
        }
    }

    fn saved(&mut self, _step: u64, path: &Path) {
        self.line(&format!("saved {}", path.display()));
    }

    fn warning(&mut self, message: &str) {
        self.line(&format!("warning: {message}"));
    }

    fn notice(&mut self, message: &str) {
        self.line(message);
    }

    fn stops(&mut self) -> bool {
        self.signals.came().is_some()
    }
}

/// A metric as people read it: accuracy as a share, what has no value as a dash.
pub fn shown(name: &str, value: f64) -> String {
    match name {
        _ if !value.is_finite() => "-".to_owned(),
        "accuracy" => format!("{:.1} %", 100.0 * value),
        _ => format!("{value:.4}"),
    }
}
