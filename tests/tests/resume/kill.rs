//! When and how processes are killed, or asked to end.

use crate::folders::{checkpoints, names};
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
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
    pub fn kill(self, command: Command, folder: &Path) -> bool {
        // SIGKILL; a process that has ended keeps its status.
        let (status, said) = self.interrupt(command, folder, |child| child.kill().unwrap());
        let killed = status.signal() == Some(9);
        assert!(killed || status.success(), "{status}: {said}");
        killed
    }

    /// Starts the command and sends it these signals at this moment, one after the other; how it ended, and what it said.
    pub fn signal(self, command: Command, folder: &Path, signals: &[&str]) -> (ExitStatus, String) {
        self.interrupt(command, folder, |child| {
            for signal in signals {
                let mut kill = Command::new("kill");
                kill.args(["-s", signal, &child.id().to_string()]);
                // It may have ended; until it is waited for its number is nobody else's.
                kill.stderr(Stdio::null()).status().unwrap();
            }
        })
    }

    fn interrupt(
        self,
        mut command: Command,
        folder: &Path,
        act: impl FnOnce(&mut Child),
    ) -> (ExitStatus, String) {
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
        act(&mut child);
        let status = child.wait().unwrap();
        (status, said.join().unwrap())
    }
}
