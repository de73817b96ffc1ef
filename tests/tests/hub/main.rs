//! Models, adapters and rows from a hub: a server on this machine that answers as it does.
#![expect(
    clippy::unwrap_used,
    reason = "a file that should have been written fails the test"
)]

mod answers;
mod binary;
mod names;

use lowrank::format::{Hub, Network};
use lowrank_tests::hub::HubServer;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub that a server is, with a cache in a folder.
fn hub(server: &HubServer, cache: &Path) -> Hub {
    Hub {
        endpoint: server.endpoint(),
        cache: cache.to_path_buf(),
        token: None,
        network: Network::Online,
        timeout: Duration::from_secs(20),
    }
}

/// Every file below a folder, links not followed, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
