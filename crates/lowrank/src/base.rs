//! Opening a base model.

use crate::paths::absolute;
use crate::{Error, Result, hub};
use candle_core::DType;
use lowrank_adapter::{Compute, Model, Part};
use lowrank_data::{ChatDate, ChatTemplate, Classes, Tokenizer};
use lowrank_format::{
    Checkpoint, Fingerprint, Gguf, HubId, Safetensors, atomic_write_file, copy_side_files,
    fingerprint, read_json_object,
};
use lowrank_frozen::{Encoding, Weights};
use lowrank_models::{Embedded, Head, ModelInfo, Precision, drawn_layer, stored_classes};
use serde_json::{Map, Value};
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::path::Path;

/// How the names of classes begin that have none.
pub(crate) const UNNAMED: &str = "LABEL_";

/// A base model with what lies beside its weights.
pub struct Base {
    /// The model.
    pub model: Box<dyn Model>,
    /// The classes that it was opened to tell apart, if it was.
    pub classes: Option<Classes>,
    files: BaseFiles,
}

/// What a base model is read from: everything but its weights is known.
pub struct BaseFiles {
    /// Vocabulary, end tokens, limits.
    pub info: ModelInfo,
    /// config.json as it stands.
    pub config: Map<String, Value>,
    files: Files,
    hub: Option<HubId>,
    /// Where the configuration stands, for messages.
    origin: String,
    /// A chat template in place of its own: its text, and where it comes from.
    template: Option<(String, String)>,
    /// What templates that tell the date are told: one day, however long the model is used.
    date: ChatDate,
}

impl Deref for Base {
    type Target = BaseFiles;

    fn deref(&self) -> &BaseFiles {
        &self.files
    }
}

/// What a model was read from.
enum Files {
    Folder(Checkpoint),
    Gguf(Gguf),
    Embedded(&'static Embedded, Safetensors),
}

impl Files {
    /// With what the model is called on the hub, if it comes from there.
    fn open(source: &str) -> Result<(Self, Option<HubId>)> {
        if let Some(model) = Embedded::named(source) {
            let file = Safetensors::embedded(model.weights, model.name)?;
            return Ok((Self::Embedded(model, file), None));
        }
        let (path, hub) = hub::model(source)?;
        let files = if is_gguf(&path) {
            Self::Gguf(Gguf::open(&path)?)
        } else {
            Self::Folder(Checkpoint::open(&path)?)
        };
        Ok((files, hub))
    }

    fn weights(&self) -> &dyn Weights {
        match self {
            Self::Folder(checkpoint) => checkpoint,
            Self::Gguf(gguf) => gguf,
            Self::Embedded(_, file) => file,
        }
    }
}

impl Base {
    /// As [`BaseFiles::set_chat_template`].
    ///
    /// # Errors
    /// As there.
    pub fn set_chat_template(&mut self, template: &str) -> Result<()> {
        self.files.set_chat_template(template)
    }

    /// As [`BaseFiles::set_chat_date`].
    pub fn set_chat_date(&mut self, date: ChatDate) {
        self.files.set_chat_date(date);
    }

    /// Chooses what products with frozen weights are computed in.
    pub fn set_compute(&mut self, compute: Compute) {
        self.model.parts(&mut |part| match part {
            Part::Linear(linear) | Part::Head(linear) => linear.set_compute(compute),
            Part::Embedding(_) | Part::Norm(_) => {}
        });
    }

    /// Opens an embedded model by its name, a folder in Hugging Face layout, a GGUF file, or a repository of the hub
    /// (`org/name[@revision]`). `tiny` is always the embedded model, and a folder of that name is `./tiny`; anything else
    /// that exists as a path is never looked for on the hub.
    ///
    /// # Errors
    /// If there is no such folder, file or repository, or something in it is missing, damaged or not supported.
    pub fn open(source: &str, precision: Precision) -> Result<Self> {
        Self::open_with(source, precision, Head::Language)
    }

    /// [`Self::open`] with a head that answers something else than tokens.
    ///
    /// # Errors
    /// As [`Self::open`], and if this kind of model has no such head.
    pub fn open_with(source: &str, precision: Precision, head: Head) -> Result<Self> {
        BaseFiles::open(source)?.load(precision, head)
    }
}

impl BaseFiles {
    /// Opens what [`Base::open`] does, without reading weights.
    ///
    /// # Errors
    /// As [`Base::open`], but for what is wrong with the weights.
    pub fn open(source: &str) -> Result<Self> {
        let (files, hub) = Files::open(source)?;
        let (config, origin) = match &files {
            Files::Folder(checkpoint) => {
                let path = checkpoint.folder().join("config.json");
                (read_json_object(&path)?, path.display().to_string())
            }
            Files::Gguf(gguf) => (gguf.config().clone(), source.to_owned()),
            Files::Embedded(model, _) => (embedded_config(model), format!("{source}/config.json")),
        };
        Ok(Self {
            info: ModelInfo::from_json(&config, &origin)?,
            config,
            files,
            hub,
            origin,
            template: None,
            date: ChatDate::today(),
        })
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// If one is missing, damaged or not supported, or this kind of model has no such head.
    pub fn load(self, precision: Precision, head: Head) -> Result<Base> {
        let weights = self.files.weights();
        let model = lowrank_models::load(&self.config, &self.origin, weights, precision, head)?;
        let classes = match head {
            Head::Classes { num_labels, .. } => {
                let own = self.classes().filter(|own| own.count() == num_labels);
                Some(own.unwrap_or(Classes::new(num_labels)))
            }
            Head::Language | Head::None => None,
        };
        Ok(Base {
            model,
            classes,
            files: self,
        })
    }

    /// The entry of `modules_to_save` for what a classifier has in front of its head and the checkpoint lacks, so that it is
    /// drawn.
    pub(crate) fn drawn_layer(&self) -> Option<&'static str> {
        drawn_layer(&self.info.model_type, self.files.weights())
    }

    /// How many numbers the checkpoint's head gives, whatever for.
    pub(crate) fn stored_classes(&self) -> Option<NonZeroUsize> {
        stored_classes(self.files.weights())
    }

    /// Whether its head tells apart tokens, choices or places in a text: such a head is called as one that classifies texts.
    fn is_of_another_task(&self) -> bool {
        const OTHERS: [&str; 3] = ["TokenClassification", "MultipleChoice", "QuestionAnswering"];
        let architectures = self.config.get("architectures").and_then(Value::as_array);
        let mut names = architectures
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        names.any(|name| OTHERS.iter().any(|task| name.ends_with(task)))
    }

    /// The classes that the checkpoint's own head tells apart, with their names in the configuration (`id2label`) if they
    /// have any; none if there is no such head, or one of another task.
    #[must_use]
    pub fn classes(&self) -> Option<Classes> {
        if self.is_of_another_task() || self.drawn_layer().is_some() {
            return None;
        }
        let count = self.stored_classes()?;
        let names = self.config.get("id2label").and_then(Value::as_object);
        let name = |class: usize| Some(names?.get(&class.to_string())?.as_str()?.to_owned());
        let names: Option<Vec<String>> = (0..count.get()).map(name).collect();
        // transformers calls classes without names so.
        let given = names.filter(|names| !names.iter().any(|name| name.starts_with(UNNAMED)));
        let named = given.and_then(|names| Classes::named(count, names));
        Some(named.unwrap_or(Classes::new(count)))
    }

    /// The folder or the GGUF file that the model was read from; for one of the hub, a folder of its cache; of an embedded
    /// model its name, which is no path.
    #[must_use]
    pub fn path(&self) -> &Path {
        match &self.files {
            Files::Folder(checkpoint) => checkpoint.folder(),
            Files::Gguf(gguf) => gguf.path(),
            Files::Embedded(_, file) => file.path(),
        }
    }

    /// Whether the model is part of the program, so that [`Self::path`] leads nowhere.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        matches!(self.files, Files::Embedded(..))
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// If there is none that can be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.files {
            Files::Folder(checkpoint) => Ok(Tokenizer::from_folder(checkpoint.folder())?),
            Files::Gguf(gguf) => {
                let text = gguf.tokenizer()?.to_string();
                Ok(Tokenizer::from_bytes(text.as_bytes(), gguf.path())?)
            }
            Files::Embedded(model, file) => Ok(Tokenizer::from_bytes(
                model.tokenizer.as_bytes(),
                file.path(),
            )?),
        }
    }

    /// Whether there is a tokenizer, readable or not; rows of token ids need none.
    #[must_use]
    pub fn has_tokenizer(&self) -> bool {
        match &self.files {
            Files::Folder(checkpoint) => checkpoint.folder().join("tokenizer.json").exists(),
            Files::Gguf(gguf) => gguf.has_tokenizer(),
            Files::Embedded(..) => true,
        }
    }

    /// Its chat template, or the one that was set.
    ///
    /// # Errors
    /// If there is none, or none that can be read.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let (mut config, origin) = match &self.files {
            Files::Folder(checkpoint) => {
                let folder = checkpoint.folder();
                (ChatTemplate::config(folder)?, folder.display().to_string())
            }
            Files::Gguf(gguf) => {
                let config = gguf.tokenizer_config()?;
                let config = config.as_object().cloned().unwrap_or_default();
                (config, gguf.path().display().to_string())
            }
            Files::Embedded(model, _) => (
                embedded_object(model.tokenizer_config),
                model.name.to_owned(),
            ),
        };
        let Some((text, origin)) = &self.template else {
            return Ok(ChatTemplate::from_config(&config, &origin)?.dated(self.date));
        };
        config.insert("chat_template".into(), text.as_str().into());
        Ok(ChatTemplate::from_config(&config, origin)?.dated(self.date))
    }

    /// The day that templates which tell the date are told; until it is set, that on which the model was opened.
    #[must_use]
    pub fn chat_date(&self) -> ChatDate {
        self.date
    }

    /// Sets that day.
    pub fn set_chat_date(&mut self, date: ChatDate) {
        self.date = date;
    }

    /// Writes chats by another template than the model's own: a file's, or one that is given as text. The names of special
    /// tokens stay the model's.
    ///
    /// # Errors
    /// If it is neither a file that can be read nor a text with a Jinja tag, or no template.
    pub fn set_chat_template(&mut self, template: &str) -> Result<()> {
        let path = Path::new(template);
        let text = if path.is_file() {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|source| lowrank_data::Error::Read {
                path: path.to_owned(),
                source,
            })?;
            (text, template.to_owned())
        } else if template.contains("{{") || template.contains("{%") {
            (template.to_owned(), "the run".to_owned())
        } else {
            return Err(Error::Usage(format!(
                "chat template `{template}` is neither a file nor a template (one has `{{{{` or `{{%` in it)"
            )));
        };
        self.template = Some(text);
        let parsed = self.chat_template().map(drop);
        parsed.map_err(|error| Error::Usage(error.to_string()))
    }

    /// The tokens that end a text that it writes: those of its configuration, and those of generation_config.json.
    ///
    /// # Errors
    /// If that file is there and cannot be read.
    pub fn end_tokens(&self) -> Result<Vec<u32>> {
        let (generation, origin) = match &self.files {
            Files::Folder(checkpoint) => {
                let path = checkpoint.folder().join("generation_config.json");
                if !path.exists() {
                    return Ok(self.info.eos_token_ids.clone());
                }
                (read_json_object(&path)?, path)
            }
            Files::Gguf(gguf) if gguf.has_tokenizer() => {
                let config = gguf.generation_config()?;
                (
                    config.as_object().cloned().unwrap_or_default(),
                    gguf.path().to_path_buf(),
                )
            }
            Files::Gguf(_) | Files::Embedded(..) => return Ok(self.info.eos_token_ids.clone()),
        };
        let origin = origin.display().to_string();
        Ok(self.info.end_tokens(&generation, &origin)?)
    }

    /// How many tokens of a text a sentence encoder was made for, as sentence-transformers has it (`max_seq_length` of
    /// sentence_bert_config.json); none if nothing says so.
    ///
    /// # Errors
    /// If that file is there and cannot be read, or says something else than a number above 0.
    pub fn sentence_length(&self) -> Result<Option<NonZeroUsize>> {
        let Files::Folder(checkpoint) = &self.files else {
            return Ok(None);
        };
        let path = checkpoint.folder().join("sentence_bert_config.json");
        if !path.exists() {
            return Ok(None);
        }
        let config = read_json_object(&path)?;
        let Some(length) = config
            .get("max_seq_length")
            .filter(|length| !length.is_null())
        else {
            return Ok(None);
        };
        let number = length
            .as_u64()
            .and_then(|length| usize::try_from(length).ok());
        let number = number.and_then(NonZeroUsize::new).ok_or_else(|| {
            let path = path.display();
            Error::Usage(format!(
                "{path}: `max_seq_length` is {length}, expected a number of tokens above 0"
            ))
        });
        number.map(Some)
    }

    /// Writes configuration and tokenizer into a folder, as a Hugging Face model has them.
    ///
    /// # Errors
    /// If a file cannot be copied or written.
    pub fn write_side_files(&self, folder: &Path) -> Result<()> {
        match &self.files {
            Files::Folder(checkpoint) => drop(copy_side_files(checkpoint.folder(), folder)?),
            Files::Gguf(gguf) => gguf.write_side_files(folder)?,
            Files::Embedded(model, _) => {
                for (name, text) in model.side_files() {
                    atomic_write_file(&folder.join(name), text.as_bytes())?;
                }
            }
        }
        Ok(())
    }

    /// f16 or bf16, if that is what every tensor is stored in: what a model that is written as it was stored has.
    #[must_use]
    pub fn stored_half(&self) -> Option<DType> {
        let weights = self.files.weights();
        let mut found = None;
        for name in weights.names() {
            match weights.info(name)?.encoding {
                Encoding::Plain(dtype @ (DType::F16 | DType::BF16))
                    if *found.get_or_insert(dtype) == dtype => {}
                _ => return None,
            }
        }
        found
    }

    /// Hashes of names and shapes, and of every value. Reads the whole checkpoint.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        Ok(fingerprint(self.files.weights())?)
    }

    /// What files that others will read call it, and its revision: the hub's name and the revision that was asked for, an
    /// embedded model's name, or an absolute path.
    #[must_use]
    pub fn name(&self) -> (String, Option<String>) {
        match &self.hub {
            Some(id) => (id.name().to_owned(), id.revision().map(str::to_owned)),
            None if self.is_embedded() => (self.path().display().to_string(), None),
            None => (absolute(self.path()).display().to_string(), None),
        }
    }
}

/// The configuration of an embedded model.
pub(crate) fn embedded_config(model: &Embedded) -> Map<String, Value> {
    embedded_object(model.config)
}

fn embedded_object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).expect("an embedded file is a JSON object")
}

/// Whether a path names a GGUF file.
pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|suffix| suffix.eq_ignore_ascii_case("gguf"))
        && !path.is_dir()
}

/// The precision that a `dtype` key or flag names. NF4 is doubly quantised, as QLoRA's is.
///
/// # Errors
/// If the word is not one.
pub fn precision(word: &str) -> Result<Precision> {
    match word {
        "as-stored" => Ok(Precision::AsStored),
        "f32" => Ok(Precision::Cast(DType::F32)),
        "f64" => Ok(Precision::Cast(DType::F64)),
        "bf16" => Ok(Precision::Cast(DType::BF16)),
        "f16" => Ok(Precision::Cast(DType::F16)),
        "nf4" => Ok(Precision::Nf4 { double: true }),
        other => Err(Error::Usage(format!(
            "unknown dtype `{other}`, expected as-stored, f32, bf16, f16, f64 or nf4"
        ))),
    }
}
