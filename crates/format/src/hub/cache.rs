//! The folder that all tools of the hub share: `blobs` by content, `snapshots/<commit>` that link to them, `refs`.

use super::client::{Client, Failure, Incoming};
use crate::fingerprint::hex;
use crate::{Error, Result, atomic_write_file};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A file whose length the server does not say is small.
const MAX_UNSAID: u64 = 64 << 20;

/// The folder of one repository.
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `name` is `models--org--name`.
    pub(super) fn new(cache: &Path, name: &str) -> Self {
        Self {
            root: cache.join(name),
        }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that a revision meant when it was last asked for.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Remembers what a revision means now.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        atomic_write_file(&path, commit.as_bytes())
    }

    /// Downloads what `incoming` brings and puts it under `file` into the snapshot, whole and checked or not at all.
    pub(super) fn store(
        &self,
        client: &Client<'_>,
        commit: &str,
        file: &str,
        mut incoming: Incoming,
    ) -> Result<Result<PathBuf, Failure>> {
        let etag = incoming.etag.as_deref().and_then(plain_etag);
        let blobs = self.root.join("blobs");
        let mut blob = etag.as_ref().map(|etag| blobs.join(etag));
        if blob.as_ref().is_none_or(|blob| !blob.is_file()) {
            fs::create_dir_all(&blobs).map_err(Error::io("create folder", &blobs))?;
            let (found, digest) = match self.receive(client, &blobs, &mut incoming)? {
                Ok(found) => found,
                Err(failure) => return Ok(Err(failure)),
            };
            // Large files are called by the SHA-256 of their bytes, small ones by git's hash of them.
            let (kind, came) = match &etag {
                Some(etag) if etag.len() == 40 => {
                    let hash = found.reopen().and_then(git_hash);
                    ("git hash", hash.map_err(Error::io("read", found.path()))?)
                }
                _ => ("SHA-256", digest.clone()),
            };
            if let Some(promised) = etag.filter(|etag| *etag != came) {
                let what = format!(
                    "what came has the {kind} {came}, and the server promised {promised}; nothing is kept, try again"
                );
                return Ok(Err(Failure::answer(what)));
            }
            let path = blob.unwrap_or_else(|| blobs.join(digest));
            found
                .persist(&path)
                .map_err(|error| Error::io("write", &path)(error.error))?;
            blob = Some(path);
        }
        let blob = blob.unwrap_or(blobs);
        let path = self.snapshot(commit).join(file);
        create_parent(&path)?;
        link(&blob, &path, file)?;
        Ok(Ok(path))
    }

    /// Reads the body into a file without a name that anyone looks for; returns it with its SHA-256.
    fn receive(
        &self,
        client: &Client<'_>,
        blobs: &Path,
        incoming: &mut Incoming,
    ) -> Result<Result<(tempfile::NamedTempFile, String), Failure>> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".").suffix(".incomplete");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut file = builder
            .tempfile_in(blobs)
            .map_err(Error::io("create a file in", blobs))?;
        let most = incoming.length.unwrap_or(MAX_UNSAID);
        let (mut digest, mut length) = (Sha256::new(), 0u64);
        let mut reader = incoming.body.as_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) => return Ok(Err(client.unreachable(&error))),
            };
            length += read as u64;
            if length > most {
                let what = format!("more than {most} bytes come, which is not what was announced");
                return Ok(Err(Failure::answer(what)));
            }
            digest.update(&buffer[..read]);
            file.write_all(&buffer[..read])
                .map_err(Error::io("write into", blobs))?;
        }
        if let Some(promised) = incoming.length
            && promised != length
        {
            let what =
                format!("{length} bytes came, and the server promised {promised}; try again");
            return Ok(Err(Failure::answer(what)));
        }
        // A name must not outlive a crash that its bytes do not.
        file.as_file()
            .sync_all()
            .map_err(Error::io("sync", blobs))?;
        Ok(Ok((file, hex(&digest.finalize()))))
    }
}

/// The SHA-1 by which git knows the contents of a file.
fn git_hash(mut file: File) -> io::Result<String> {
    let mut digest = Sha1::new();
    digest.update(format!("blob {}\0", file.metadata()?.len()));
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&digest.finalize())),
            read => digest.update(&buffer[..read]),
        }
    }
}

/// Whether this is a commit's hash, in SHA-1 or SHA-256.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The hash in an `etag` header; other servers may write anything there, and it becomes the name of a file.
fn plain_etag(header: &str) -> Option<String> {
    let etag = header
        .strip_prefix("W/")
        .unwrap_or(header)
        .trim_matches('"');
    is_commit(etag).then(|| etag.to_ascii_lowercase())
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(Error::io("create folder", parent))
}

/// Links `path`, which is `file` in its snapshot, to a blob.
#[cfg(unix)]
fn link(blob: &Path, path: &Path, file: &str) -> Result<()> {
    let up = "../".repeat(2 + file.matches('/').count());
    let name = blob.file_name().unwrap_or_default();
    let target = Path::new(&up).join("blobs").join(name);
    // What is there leads nowhere any more, or else nothing would have been downloaded.
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path).map_err(Error::io("replace", path))?;
    }
    match std::os::unix::fs::symlink(target, path) {
        // Another process was faster, with the same file.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(Error::io("write", path)),
    }
}

/// Where links need privileges, the snapshot holds the file itself.
#[cfg(not(unix))]
fn link(blob: &Path, path: &Path, _file: &str) -> Result<()> {
    fs::rename(blob, path).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_called_as_git_calls_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        // What `git hash-object` says of these files.
        for (contents, expected) in [
            ("", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
            ("hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
        ] {
            fs::write(&path, contents).unwrap();
            assert_eq!(git_hash(File::open(&path).unwrap()).unwrap(), expected);
        }
    }

    #[test]
    fn only_hashes_become_file_names() {
        let git = "b908f2b7227d4d31a2105dfa31095e28d304f9bc";
        let sha256 = "B908f2b7227d4d31a2105dfa31095e28d304f9bc938bfaaa57ee2cacf1f62d32";
        let lower = sha256.to_lowercase();
        for (header, expected) in [
            (format!("\"{git}\""), Some(git)),
            (format!("W/\"{git}\""), Some(git)),
            (format!("\"{sha256}\""), Some(lower.as_str())),
            ("\"../../../etc/passwd\"".to_owned(), None),
            (format!("{git}/"), None),
            ("\"abc\"".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(plain_etag(&header).as_deref(), expected, "{header}");
        }
    }
}
