//! When and how processes are killed.

use crate::folders::{checkpoints, names};
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// When a process is killed.
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    /// So long after its start.
    After(Duration),
    /// As soon as this folder of the run holds a temporary name that begins so.
    Staged(&'static str, &'static str),
    /// As soon as there are so many checkpoints.
    Checkpoints(usize),
    /// As soon as this exists.
    Written(&'static str),
}

impl Moment {
    fn has_come(self, folder: &Path) -> bool {
        match self {
            Self::After(_) => false,
            Self::Staged(inner, prefix) => names(&folder.join(inner))
                .iter()
                .any(|name| name.starts_with(prefix) && name.ends_with(".tmp")),
            Self::Checkpoints(count) => checkpoints(folder).len() >= count,
            Self::Written(path) => folder.join(path).exists(),
        }
    }

    /// Starts the command and kills it at this moment; false if it ended before, which must be with success.
    pub fn kill(self, mut command: Command, folder: &Path) -> bool {
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let (ended, end) = mpsc::channel();
        let said = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            // Nobody may be waiting any more.
            let _ = ended.send(());
            text
        });
        match self {
            Self::After(time) => drop(end.recv_timeout(time)),
            _ => while !self.has_come(folder) && end.try_recv().is_err() {},
        }
        // SIGKILL; a process that has ended keeps its status.
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let said = said.join().unwrap();
        let killed = status.signal() == Some(9);
        assert!(killed || status.success(), "{status}: {said}");
        killed
    }
}
