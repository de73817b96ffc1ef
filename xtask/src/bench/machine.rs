//! What a benchmark ran on, and when.

use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What a benchmark ran on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Machine {
    /// The processor's name as it gives it.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Operating system and architecture.
    pub system: String,
    /// The level of instructions that our kernels use.
    pub simd: String,
}

impl Machine {
    /// This machine. What the system does not tell is empty or 0.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: field(&read("/proc/meminfo"), "MemTotal")
                .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
                .map_or(0, |kilobytes| kilobytes / 1024),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            simd: format!("{:?}", lowrank_ops::simd::Level::used()).to_lowercase(),
        }
    }

    /// The processor's name as part of a folder's.
    pub fn slug(&self) -> String {
        let plain = self.cpu.replace("(R)", " ").replace("(TM)", " ");
        let words = plain
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty());
        let slug = words.collect::<Vec<_>>().join("-").to_lowercase();
        match slug.as_str() {
            "" => "unknown".to_owned(),
            _ => slug,
        }
    }

    /// Its part of the JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "cpu": self.cpu, "cores": self.cores, "memory_mib": self.memory_mib,
            "system": self.system, "simd": self.simd,
        })
    }
}

/// The value of the first `name : value` line of a file under /proc.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The day in UTC, `2026-01-31`.
pub fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    date(since.map_or(0, |time| time.as_secs() / 86_400))
}

/// The date of a day counted from 1970-01-01.
fn date(day: u64) -> String {
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut day) = (1970, day);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", day + 1)
}

/// The commit that was checked out, with `-dirty` if tracked files differ from it.
pub fn commit(root: &Path) -> String {
    let commit = output(root, "git", &["rev-parse", "HEAD"]);
    let changed = output(
        root,
        "git",
        &["status", "--porcelain", "--untracked-files=no"],
    );
    match changed.as_str() {
        "" => commit,
        _ => format!("{commit}-dirty"),
    }
}

/// The versions that timings depend on, without the peer's.
pub fn versions(root: &Path) -> Map<String, Value> {
    let rustc = output(root, "rustc", &["--version"]);
    Map::from_iter([
        ("lowrank".to_owned(), env!("CARGO_PKG_VERSION").into()),
        ("rustc".to_owned(), rustc.into()),
    ])
}

/// What a command prints, trimmed; empty if it cannot be run.
fn output(root: &Path, program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .output();
    run.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

/// Seconds that this process has computed, on all threads together; none where the system does not tell.
pub fn cpu_seconds() -> Option<f64> {
    let [user, system, ..] = own_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?;
    Some((user + system) / TICKS)
}

/// Linux counts processor time in hundredths of a second.
const TICKS: f64 = 100.0;

/// Ticks in user and system mode, of a process and of its children that have ended: fields 14 to 17 of its `stat`.
fn own_ticks(stat: &str) -> Option<[f64; 4]> {
    // The name, in parentheses, may hold anything.
    let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: Vec<f64> = fields
        .take(4)
        .map_while(|field| field.parse().ok())
        .collect();
    ticks.try_into().ok()
}

/// Ticks that all cores spent on anything but idling or waiting for a disk, time that other guests took included: of the
/// first line of /proc/stat, user, nice, system, irq, softirq and steal.
fn busy_ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.lines().next()?.split_whitespace();
    if fields.next()? != "cpu" {
        return None;
    }
    let ticks: Vec<f64> = fields.map_while(|field| field.parse().ok()).collect();
    let of = [0, 1, 2, 5, 6, 7].map(|field| ticks.get(field));
    of.into_iter()
        .flatten()
        .copied()
        .reduce(|sum, ticks| sum + ticks)
}

/// Watches what the machine does beside this process and its children.
#[derive(Debug)]
pub struct Watch {
    start: Instant,
    /// Ticks of all cores that were neither idle nor ours.
    foreign: Option<f64>,
}

impl Watch {
    /// From now on.
    pub fn start() -> Self {
        let (start, foreign) = (Instant::now(), foreign_ticks());
        Self { start, foreign }
    }

    /// The share of all cores' time since then that others took, once the children have ended; none where the system does
    /// not tell.
    pub fn foreign_load(&self) -> Option<f64> {
        let ticks = foreign_ticks()? - self.foreign?;
        let cores = Machine::here().cores as f64;
        let all = self.start.elapsed().as_secs_f64() * cores * TICKS;
        Some((ticks / all).max(0.0))
    }
}

fn foreign_ticks() -> Option<f64> {
    let own = own_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?;
    let busy = busy_ticks(&fs::read_to_string("/proc/stat").ok()?)?;
    Some(busy - own.into_iter().sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(59), "1970-03-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(20_453), "2025-12-31");
        assert_eq!(date(20_454), "2026-01-01");
    }

    #[test]
    fn slugs_are_plain() {
        let of = |cpu: &str| {
            let cpu = cpu.to_owned();
            Machine {
                cpu,
                ..Machine::default()
            }
            .slug()
        };
        assert_eq!(
            of("Intel(R) Xeon(R) CPU @ 2.60GHz"),
            "intel-xeon-cpu-2-60ghz"
        );
        assert_eq!(of("AMD EPYC 9R14"), "amd-epyc-9r14");
        assert_eq!(of(""), "unknown");
    }

    #[test]
    fn fields_of_proc_are_found() {
        assert_eq!(
            field("a : 1\nmodel name\t: X 2\n", "model name").as_deref(),
            Some("X 2")
        );
        assert_eq!(field("a : 1\n", "b"), None);
    }

    #[test]
    fn computing_takes_cpu_time() {
        let Some(before) = cpu_seconds() else { return };
        let mut x = 1.0_f64;
        while cpu_seconds().is_some_and(|now| now - before < 0.03) {
            x = x.sin() + 1.0;
        }
        assert!(x > 0.0 && cpu_seconds() > Some(before));
    }

    #[test]
    fn ticks_are_read_from_the_right_fields() {
        let own = "7 (a ) b) S 1 7 7 0 -1 4 1 2 3 4 250 30 4 5 20 0 1";
        assert_eq!(own_ticks(own), Some([250.0, 30.0, 4.0, 5.0]));
        assert_eq!(own_ticks("7 (a) S 1"), None);
        // user 1, nice 2, system 4, idle 8, iowait 16, irq 32, softirq 64, steal 128, guest 256.
        let all = "cpu  1 2 4 8 16 32 64 128 256 0\ncpu0 1 1 1 1\n";
        assert_eq!(busy_ticks(all), Some(1.0 + 2.0 + 4.0 + 32.0 + 64.0 + 128.0));
        assert_eq!(busy_ticks("intr 1 2"), None);
    }
}
