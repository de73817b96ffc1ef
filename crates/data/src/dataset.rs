//! All rows of a few files: in memory, or in files that were made for them.

use crate::cache::Cache;
use crate::classes::{Classes, Expected, Labels};
use crate::encoded::Encoded;
use crate::error::{Error, Result};
use crate::example::{Encoder, Example, Reference};
use crate::examples::{Examples, StoredFiles};
use crate::row::Kind;
use crate::source;
use crate::tokenizer::Tokenizer;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How rows become examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Longer rows lose their right end, in tokens.
    pub max_length: NonZeroUsize,
    /// What ends a text or a completion; none if the model has no such token.
    pub end_token: Option<u32>,
    /// The size of the model's vocabulary: every token must be below.
    pub vocab: usize,
    /// At most so many rows are read.
    pub limit: Option<NonZeroUsize>,
}

/// Rows in the order of the files, at least one, at least one of them supervised.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub(crate) held: Held,
    /// Which rows of those that are held; none: all.
    pub(crate) chosen: Option<Vec<usize>>,
    pub(crate) references: Vec<Reference>,
    pub(crate) classes: Option<Classes>,
    pub(crate) summary: Summary,
    pub(crate) longest: usize,
    pub(crate) max_length: usize,
}

/// Where rows are; the parts of a data set share them.
#[derive(Debug, Clone)]
pub(crate) enum Held {
    Memory(Arc<Vec<Example>>),
    Stored(Arc<StoredFiles>),
}

/// What a data set holds, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The files that were read, in order.
    pub files: Vec<FileSummary>,
    /// How many rows there are.
    pub rows: usize,
    /// How many rows lost their right end, in the example or in a choice.
    pub truncated: usize,
    /// How many rows have nothing supervised (left): they are kept, and add nothing to a loss.
    pub unsupervised: usize,
    /// How many tokens all examples have.
    pub tokens: u64,
    /// How many of their predictions count.
    pub supervised: u64,
    /// The length of the longest example, in tokens.
    pub longest: usize,
}

/// What one file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    /// The file.
    pub path: PathBuf,
    /// The pattern that named it, from 0.
    pub pattern: usize,
    /// The kind of its rows.
    pub kind: Kind,
    /// How many rows were read, less those that are held out.
    pub rows: usize,
    /// How many of them an epoch takes, one that comes twice counted twice.
    pub per_epoch: usize,
}

/// What a summary counts of a row.
pub(crate) struct Facts {
    tokens: usize,
    supervised: usize,
    truncated: bool,
}

impl Summary {
    pub(crate) fn add(&mut self, row: &Facts) {
        self.rows += 1;
        self.truncated += usize::from(row.truncated);
        self.unsupervised += usize::from(row.supervised == 0);
        self.tokens += row.tokens as u64;
        self.supervised += row.supervised as u64;
        self.longest = self.longest.max(row.tokens);
    }
}

impl Dataset {
    /// Reads the files that `patterns` name (paths or globs; the matches of a glob are sorted) into memory. Rows of text
    /// need a tokenizer, rows of tokens do not.
    ///
    /// # Errors
    /// If a pattern matches nothing, a file cannot be read or has no rows, a row is malformed (the error names file and
    /// line), or nothing is supervised in all files together.
    pub fn open(
        patterns: &[String],
        tokenizer: Option<&Tokenizer>,
        options: &Options,
    ) -> Result<Self> {
        Self::open_with(patterns, tokenizer, options, Expected::Found(None))
    }

    /// [`Self::open`] with what is known of the classes that labels name.
    ///
    /// # Errors
    /// As [`Self::open`], and if a label is none of the classes, labels are of several forms, or all of them are one class.
    pub fn open_with(
        patterns: &[String],
        tokenizer: Option<&Tokenizer>,
        options: &Options,
        expected: Expected<'_>,
    ) -> Result<Self> {
        let encoder = encoder(tokenizer, options)?;
        Self::read(&source::files(patterns)?, &encoder, options.limit, expected)
    }

    /// The same rows, from `cache` if the files are large enough for it: no more than one of them is in memory at a time, and
    /// they are tokenised only if that was never done before. A limit on the rows leaves the cache out, and so do rows with labels,
    /// which mean something only together.
    ///
    /// # Errors
    /// As [`Dataset::open_with`], or if the cache must be used and cannot be written.
    pub fn open_cached(
        patterns: &[String],
        tokenizer: Option<&Tokenizer>,
        options: &Options,
        expected: Expected<'_>,
        cache: &Cache,
    ) -> Result<Self> {
        let encoder = encoder(tokenizer, options)?;
        let files = source::files(patterns)?;
        let paths: Vec<PathBuf> = files.iter().map(|(_, path)| path.clone()).collect();
        if options.limit.is_some() || !cache.holds(&paths)? {
            return Self::read(&files, &encoder, options.limit, expected);
        }
        match Self::stored(&files, &encoder, cache) {
            Err(error @ Error::WriteCache { .. }) if !cache.required => {
                tracing::warn!("{error}; all rows are held in memory");
                Self::read(&files, &encoder, None, expected)
            }
            Ok(None) => {
                if cache.required {
                    tracing::warn!(
                        "rows with labels are held in memory, whatever `data.cache` says"
                    );
                }
                Self::read(&files, &encoder, None, expected)
            }
            Ok(Some(stored)) => Ok(stored),
            Err(error) => Err(error),
        }
    }

    /// Reads every row into memory.
    fn read(
        files: &[(usize, PathBuf)],
        encoder: &Encoder<'_>,
        limit: Option<NonZeroUsize>,
        expected: Expected<'_>,
    ) -> Result<Self> {
        let mut labels = Labels::new(expected);
        let limit = limit.map_or(usize::MAX, NonZeroUsize::get);
        let (mut examples, mut references) = (Vec::new(), Vec::new());
        let mut found = Vec::new();
        for (pattern, path) in files {
            if examples.len() == limit {
                break;
            }
            let mut rows = Encoded::open(path, encoder)?.with_labels(&mut labels);
            let first = examples.len();
            while examples.len() < limit
                && let Some((mut example, reference)) = rows.next()?
            {
                // Rows stay, and lists that grew have room to spare.
                example.ids.shrink_to_fit();
                example.labels.shrink_to_fit();
                examples.push(example);
                references.push(reference);
            }
            let kind = rows
                .kind()
                .ok_or_else(|| Error::NoRows { path: path.clone() })?;
            found.push(file(*pattern, path, kind, examples.len() - first));
        }
        let classes = labels.finish(&mut examples)?;
        let held = Held::Memory(Arc::new(examples));
        let data = Self::whole(held, references, found, encoder)?;
        Ok(Self { classes, ..data })
    }

    /// Leaves every row in a file; none if rows have labels.
    fn stored(
        files: &[(usize, PathBuf)],
        encoder: &Encoder<'_>,
        cache: &Cache,
    ) -> Result<Option<Self>> {
        let (mut stored, mut found) = (StoredFiles::default(), Vec::new());
        for (pattern, path) in files {
            let Some(rows) = cache.open(path, encoder)? else {
                return Ok(None);
            };
            found.push(file(*pattern, path, rows.kind(), rows.entries().len()));
            stored.push(rows);
        }
        let held = Held::Stored(Arc::new(stored));
        Self::whole(held, Vec::new(), found, encoder).map(Some)
    }

    fn whole(
        held: Held,
        references: Vec<Reference>,
        files: Vec<FileSummary>,
        encoder: &Encoder<'_>,
    ) -> Result<Self> {
        let mut data = Self {
            held,
            chosen: None,
            references,
            classes: None,
            summary: Summary {
                files,
                ..Summary::default()
            },
            longest: 0,
            max_length: encoder.max_length.get(),
        };
        let questions = data.references.iter().map(|reference| match reference {
            Reference::Choices(question) => question.longest(),
            _ => 0,
        });
        data.longest = questions.max().unwrap_or(0);
        let rows = data.examples().len();
        for row in 0..rows {
            let facts = data.facts(row);
            data.summary.add(&facts);
            if let Held::Stored(files) = &data.held {
                data.longest = data.longest.max(files.entry(row).longest as usize);
            }
        }
        data.longest = data.longest.max(data.summary.longest);
        data.checked()
    }

    /// Refuses rows of which nothing is supervised.
    pub(crate) fn checked(mut self) -> Result<Self> {
        let mut references = self.references.iter();
        if references.all(|reference| *reference == Reference::None) {
            self.references = Vec::new();
        }
        let summary = &self.summary;
        if summary.supervised == 0 {
            return Err(Error::NothingSupervised {
                files: summary.files.iter().map(|file| file.path.clone()).collect(),
                rows: summary.rows,
                truncated: summary.truncated,
                max_length: self.max_length,
            });
        }
        Ok(self)
    }

    /// Where a row is in what is held.
    pub(crate) fn place(&self, row: usize) -> usize {
        self.chosen.as_ref().map_or(row, |chosen| chosen[row])
    }

    pub(crate) fn facts(&self, row: usize) -> Facts {
        match &self.held {
            Held::Memory(examples) => {
                let example = &examples[self.place(row)];
                let cut_choice = matches!(
                    self.references.get(row),
                    Some(Reference::Choices(question)) if question.truncated
                );
                Facts {
                    tokens: example.ids.len(),
                    supervised: example.supervised(),
                    truncated: example.truncated || cut_choice,
                }
            }
            Held::Stored(files) => {
                let entry = files.entry(self.place(row));
                Facts {
                    tokens: entry.tokens as usize,
                    supervised: entry.supervised as usize,
                    truncated: entry.truncated,
                }
            }
        }
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.examples().len()).expect("a data set without rows is refused")
    }

    /// The most tokens that a row or one of its choices has, of all rows before any was held out.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Whether rows are left in the files of a [`Cache`].
    #[must_use]
    pub fn is_cached(&self) -> bool {
        matches!(self.held, Held::Stored(_))
    }

    /// The kind of all rows; none if the files are of different kinds.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        let kind = self.summary.files.first()?.kind;
        self.summary
            .files
            .iter()
            .all(|file| file.kind == kind)
            .then_some(kind)
    }

    /// One example a row, in the order of the files.
    #[must_use]
    pub fn examples(&self) -> Examples<'_> {
        Examples::of(&self.held, self.chosen.as_deref(), &self.summary.files)
    }

    /// What an evaluation compares with, one a row; none at all if no row has one or they were left in files, see
    /// [`Dataset::with_references`].
    #[must_use]
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// The classes that the rows' labels name; none unless rows have labels.
    #[must_use]
    pub fn classes(&self) -> Option<&Classes> {
        self.classes.as_ref()
    }

    /// The numbers.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }
}

fn file(pattern: usize, path: &Path, kind: Kind, rows: usize) -> FileSummary {
    FileSummary {
        path: path.to_owned(),
        pattern,
        kind,
        rows,
        per_epoch: rows,
    }
}

fn encoder<'a>(tokenizer: Option<&'a Tokenizer>, options: &Options) -> Result<Encoder<'a>> {
    let Options {
        max_length,
        end_token,
        vocab,
        limit: _,
    } = *options;
    if let Some(token) =
        end_token.filter(|&token| token as usize >= vocab || i32::try_from(token).is_err())
    {
        return Err(Error::EndToken { token, vocab });
    }
    Ok(Encoder {
        tokenizer,
        end_token,
        max_length,
        vocab,
    })
}
