//! What asks a run to stop: SIGINT (Ctrl-C) and SIGTERM.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A signal that came. Until [`Signals::catch`] one ends the process at once, as ever; a second one always does.
#[derive(Debug, Default)]
pub struct Signals {
    any: Arc<AtomicBool>,
    number: Arc<AtomicUsize>,
}

impl Signals {
    /// From now on the first signal is only noted.
    pub fn catch(&self) -> io::Result<()> {
        for (signal, number) in [(SIGINT, 2), (SIGTERM, 15)] {
            // They act in this order: what ends the process looks whether an earlier signal has been noted.
            flag::register_conditional_default(signal, Arc::clone(&self.any))?;
            flag::register_usize(signal, Arc::clone(&self.number), number)?;
            flag::register(signal, Arc::clone(&self.any))?;
        }
        Ok(())
    }

    /// The signal that came: its name, and the exit status that shells give to a process ended by it.
    pub fn came(&self) -> Option<(&'static str, u8)> {
        match self.number.load(Ordering::SeqCst) {
            2 => Some(("SIGINT", 130)),
            15 => Some(("SIGTERM", 143)),
            _ => None,
        }
    }
}
