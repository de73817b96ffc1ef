//! Rows in a file that was made for them.
//!
//! All numbers are little-endian:
//!
//! ```text
//! magic (8 bytes) | key (32) | rows, one behind the other | for each: offset u64, bytes, tokens, supervised, longest,
//! flags (u32 each) | offset of these entries u64, rows u64, kind u32, 0 u32 | SHA-256 of everything before (32)
//! ```
//!
//! A file is checked as a whole when it is opened. Only its entries stay in memory.

use crate::error::{Error, Result};
use crate::example::{Example, Reference};
use crate::record;
use crate::row::Kind;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::NamedTempFile;

/// A hash of everything that rows depend on.
pub(crate) type Key = [u8; 32];

/// The last byte is the version of the form.
const MAGIC: [u8; 8] = *b"lowrows\x01";
const HEADER: u64 = 40;
const ENTRY: u64 = 28;
const FOOTER: u64 = 24;
const DIGEST: u64 = 32;

const TRUNCATED: u32 = 1;
const REFERRED: u32 = 1 << 1;

/// What is known of a row without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub offset: u64,
    pub bytes: u32,
    pub tokens: u32,
    pub supervised: u32,
    /// The most tokens that it or one of its choices has.
    pub longest: u32,
    /// Whether it, or one of its choices, lost its right end.
    pub truncated: bool,
    /// Whether it has a reference.
    pub referred: bool,
}

/// What the names of files begin with that are being made.
const PREFIX: &str = ".rows-";

/// How old a file must be that nobody has locked to be a leftover: its writer may be about to lock it.
const UNLOCKED: Duration = Duration::from_secs(60);

/// The same where files cannot be locked.
const LOCKLESS: Duration = Duration::from_secs(24 * 60 * 60);

/// A file that is being made.
pub(crate) struct Writer {
    file: BufWriter<NamedTempFile>,
    hash: Sha256,
    path: PathBuf,
    written: u64,
    entries: Vec<Entry>,
    record: Vec<u8>,
}

impl Writer {
    /// Begins a file that will be called `path`, whose folder is made.
    pub fn create(path: &Path, key: &Key) -> Result<Self> {
        let failed = |source| Error::WriteCache {
            path: path.to_owned(),
            source,
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        remove_leftovers(folder);
        let named = tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder);
        let named = named.map_err(failed)?;
        // Tells others that it is being written; where there are no locks, its age does.
        drop(named.as_file().try_lock());
        let mut writer = Self {
            file: BufWriter::with_capacity(1 << 20, named),
            hash: Sha256::new(),
            path: path.to_owned(),
            written: 0,
            entries: Vec::new(),
            record: Vec::new(),
        };
        writer.put(&MAGIC)?;
        writer.put(key)?;
        Ok(writer)
    }

    /// Appends a row.
    pub fn push(&mut self, example: &Example, reference: &Reference) -> Result<()> {
        let (cut, longest) = match reference {
            Reference::Choices(question) => (question.truncated, question.longest()),
            _ => (false, 0),
        };
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        record::write(example, reference, &mut record);
        let short = |number: usize| {
            let too_large = || io::Error::from(ErrorKind::FileTooLarge);
            let number = u32::try_from(number).map_err(|_| too_large());
            number.map_err(|source| self.failed(source))
        };
        let entry = Entry {
            offset: self.written,
            bytes: short(record.len())?,
            tokens: short(example.ids.len())?,
            supervised: short(example.supervised())?,
            longest: short(example.ids.len().max(longest))?,
            truncated: example.truncated || cut,
            referred: *reference != Reference::None,
        };
        self.put(&record)?;
        self.record = record;
        self.entries.push(entry);
        Ok(())
    }

    /// Gives the file its name.
    pub fn finish(mut self, kind: Kind) -> Result<()> {
        let entries = std::mem::take(&mut self.entries);
        let start = self.written;
        for entry in &entries {
            let mut flags = if entry.truncated { TRUNCATED } else { 0 };
            flags |= if entry.referred { REFERRED } else { 0 };
            self.put(&entry.offset.to_le_bytes())?;
            for number in [
                entry.bytes,
                entry.tokens,
                entry.supervised,
                entry.longest,
                flags,
            ] {
                self.put(&number.to_le_bytes())?;
            }
        }
        self.put(&start.to_le_bytes())?;
        self.put(&(entries.len() as u64).to_le_bytes())?;
        self.put(&kind.code().to_le_bytes())?;
        self.put(&[0; 4])?;
        let digest = self.hash.clone().finalize();
        self.put(&digest)?;
        let Self { file, path, .. } = self;
        let failed = |source| Error::WriteCache {
            path: path.clone(),
            source,
        };
        let file = file
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        let put = self.file.write_all(bytes);
        put.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::WriteCache {
            path: self.path.clone(),
            source,
        }
    }
}

/// Removes what killed writers left. What cannot be looked at or removed stays: it is in nobody's way.
fn remove_leftovers(folder: &Path) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && is_leftover(&entry.path()).unwrap_or(false)
        {
            drop(fs::remove_file(entry.path()));
        }
    }
}

fn is_leftover(path: &Path) -> io::Result<bool> {
    // A link, or a pipe that would be waited for, is nothing that a writer left.
    if !path.symlink_metadata()?.is_file() {
        return Ok(false);
    }
    let file = File::open(path)?;
    let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
    Ok(match file.try_lock() {
        Ok(()) => age >= UNLOCKED,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => age >= LOCKLESS,
    })
}

/// A file that was checked.
#[derive(Debug)]
pub(crate) struct Stored {
    path: PathBuf,
    file: File,
    vocab: usize,
    entries: Vec<Entry>,
    kind: Kind,
}

impl Stored {
    /// Opens a file and checks that it was written whole, for this key. None if there is none.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn open(path: &Path, key: &Key, vocab: usize) -> Result<Option<Self>, String> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let read = read(&mut reader, length, key).map_err(|error| error.to_string())?;
        let (entries, kind) = read?;
        Ok(Some(Self {
            path: path.to_owned(),
            file: reader.into_inner(),
            vocab,
            entries,
            kind,
        }))
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A row.
    pub fn get(&self, row: usize) -> Result<(Example, Reference)> {
        let entry = &self.entries[row];
        let mut bytes = vec![0; entry.bytes as usize];
        read_at(&self.file, &mut bytes, entry.offset).map_err(|source| Error::Read {
            path: self.path.clone(),
            source,
        })?;
        let found = record::read(&bytes, self.vocab);
        // It was whole when it was opened.
        found
            .filter(|(example, _)| {
                let (tokens, supervised) = (entry.tokens as usize, entry.supervised as usize);
                (tokens, supervised) == (example.ids.len(), example.supervised())
            })
            .ok_or_else(|| Error::CacheChanged {
                path: self.path.clone(),
            })
    }
}

type Index = (Vec<Entry>, Kind);

fn read(reader: &mut BufReader<File>, length: u64, key: &Key) -> io::Result<Result<Index, String>> {
    const CUT: &str = "it is cut off";
    let refuse = |what: &str| Ok(Err(what.to_owned()));
    let Some(body) = length.checked_sub(DIGEST) else {
        return refuse(CUT);
    };
    let Some(footer) = body.checked_sub(FOOTER).filter(|&footer| footer >= HEADER) else {
        return refuse(CUT);
    };
    let mut hash = Sha256::new();
    let mut header = [0; HEADER as usize];
    reader.read_exact(&mut header)?;
    hash.update(header);
    if header[..MAGIC.len()] != MAGIC {
        return refuse("it is no such file, or of another version");
    }
    if header[MAGIC.len()..] != *key {
        return refuse("it was made of other rows");
    }
    let mut buffer = vec![0; 1 << 18];
    let mut left = body - HEADER;
    while left > 0 {
        let count = left.min(buffer.len() as u64) as usize;
        reader.read_exact(&mut buffer[..count])?;
        hash.update(&buffer[..count]);
        left -= count as u64;
    }
    let mut digest = [0; DIGEST as usize];
    reader.read_exact(&mut digest)?;
    if hash.finalize()[..] != digest {
        return refuse("its checksum is wrong");
    }
    reader.seek(SeekFrom::Start(footer))?;
    let (start, rows) = (long(reader)?, long(reader)?);
    let kind = Kind::from_code(number(reader)?);
    let fits = rows
        .checked_mul(ENTRY)
        .and_then(|size| start.checked_add(size))
        == Some(footer);
    let (Some(kind), true, true) = (kind, fits, rows > 0) else {
        return refuse("its footer makes no sense");
    };
    reader.seek(SeekFrom::Start(start))?;
    // As many as the file has room for.
    let mut entries = Vec::with_capacity(rows as usize);
    for _ in 0..rows {
        let offset = long(reader)?;
        let [bytes, tokens, supervised, longest, flags] = {
            let mut numbers = [0; 5];
            for place in &mut numbers {
                *place = number(reader)?;
            }
            numbers
        };
        let end = offset.checked_add(u64::from(bytes));
        if offset < HEADER || end.is_none_or(|end| end > start) {
            return refuse("a row lies outside of it");
        }
        entries.push(Entry {
            offset,
            bytes,
            tokens,
            supervised,
            longest,
            truncated: flags & TRUNCATED != 0,
            referred: flags & REFERRED != 0,
        });
    }
    Ok(Ok((entries, kind)))
}

fn long(reader: &mut BufReader<File>) -> io::Result<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn number(reader: &mut BufReader<File>) -> io::Result<u32> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    // A handle of its own has a place of its own.
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}
