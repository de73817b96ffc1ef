//! A method of adaptation.

use crate::Result;
use crate::adapter::Adapter;
use crate::attach::Attach;
use crate::attached::Export;
use crate::config::{ResidualBase, parse_each};
use crate::controller::Controller;
use crate::site::SiteId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// A method of adaptation: a unit struct, listed once in `registry::FAMILIES`. Sees linears only.
pub trait Family: Send + Sync + 'static {
    /// The family's own keys, serialised beside the common PEFT keys; every key has a default (an empty object
    /// parses), and every value that parses is valid.
    type Config: Serialize + DeserializeOwned + Clone + fmt::Debug;

    /// Lower case: the folder and the command-line name; in capitals, the `peft_type` tag.
    const NAME: &'static str;

    /// Keys that the reference's file has and we carry at this value only: another value is "not yet supported".
    fn fixed() -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    /// Those of [`fixed`](Self::fixed) that only say how a file's tensors came about: accepted at any value in an adapter
    /// folder, where they mean nothing any more.
    fn notes() -> &'static [&'static str] {
        &[]
    }

    /// Keys that the reference's file of this method does not have: written only where they are not at their defaults. A
    /// common one (`bias`) is unknown here too.
    fn lacks() -> &'static [&'static str] {
        &[]
    }

    /// The word of the key `bias` for the biases of the targeted modules.
    fn targeted_bias() -> String {
        format!("{}_only", Self::NAME)
    }

    /// The configuration under which a folder's tensors mean what they meant to who saved them. `base` is what the user
    /// says about the base model, if anything; a family whose files do not depend on it leaves it alone.
    ///
    /// # Errors
    /// If the tensors mean nothing without an answer, or cannot be used with this one.
    fn read_as(config: Self::Config, _base: Option<ResidualBase>) -> Result<Self::Config> {
        Ok(config)
    }

    /// Turns what was trained into what an adapter folder holds, where the two differ: into a form that the reference
    /// reads, or without what a gate has switched off. Attaching the result must give the same outputs.
    ///
    /// # Errors
    /// If there is no such form.
    fn export(export: Export<Self::Config>) -> Result<Export<Self::Config>> {
        Ok(export)
    }

    /// The targeted modules and their (n_out, n_in), as far as the names and shapes of a file's tensors tell. The
    /// default knows the pair `lora_A.weight` `[r, n_in]`, `lora_B.weight` `[n_out, r]`.
    fn sites(shapes: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, (usize, usize)> {
        let pair = |(name, a): (&String, &Vec<usize>)| {
            let path = name.strip_suffix(".lora_A.weight")?;
            let b = shapes.get(&format!("{path}.lora_B.weight"))?;
            match (a.as_slice(), b.as_slice()) {
                (&[_, n_in], &[n_out, _]) => Some((path.to_owned(), (n_out, n_in))),
                _ => None,
            }
        };
        shapes.iter().filter_map(pair).collect()
    }

    /// Sees all target sites at once, so that tensors can be shared and layers chained.
    ///
    /// # Errors
    /// If the configuration does not fit a site, or a tensor cannot be declared.
    fn attach(&self, config: &Self::Config, cx: &mut Attach<'_>) -> Result<Attachment>;
}

/// One adapter per site, in site order, and what acts on all of them between steps.
#[derive(Debug)]
pub struct Attachment {
    /// One a site.
    pub adapters: Vec<Box<dyn Adapter>>,
    /// What acts between steps.
    pub controller: Option<Box<dyn Controller>>,
}

impl Attachment {
    /// An attachment without a controller: `make` is called for every site, in order.
    ///
    /// # Errors
    /// Whatever `make` returns, with the site's path.
    pub fn per_site<'a>(
        cx: &mut Attach<'a>,
        mut make: impl FnMut(&mut Attach<'a>, SiteId) -> Result<Box<dyn Adapter>>,
    ) -> Result<Self> {
        let sites: Vec<SiteId> = cx.site_ids().collect();
        let adapters = sites
            .into_iter()
            .map(|site| make(cx, site).map_err(|error| error.at(&cx.site(site).path.clone())))
            .collect::<Result<_>>()?;
        Ok(Self {
            adapters,
            controller: None,
        })
    }
}

/// A [`Family`] whose configuration is JSON: the only place where a family is erased.
pub trait AnyFamily: Send + Sync {
    /// [`Family::NAME`].
    fn name(&self) -> &'static str;

    /// The tag in adapter files.
    fn peft_type(&self) -> String {
        self.name().to_uppercase()
    }

    /// The family's own keys with their default values.
    fn defaults(&self) -> Map<String, Value>;

    /// [`Family::fixed`].
    fn fixed(&self) -> Vec<(&'static str, Value)>;

    /// [`Family::notes`].
    fn notes(&self) -> &'static [&'static str];

    /// [`Family::lacks`].
    fn lacks(&self) -> &'static [&'static str];

    /// [`Family::targeted_bias`].
    fn targeted_bias(&self) -> String;

    /// [`Family::read_as`].
    ///
    /// # Errors
    /// As there.
    fn read_as(
        &self,
        own: &Map<String, Value>,
        base: Option<ResidualBase>,
    ) -> Result<Map<String, Value>>;

    /// [`Family::export`].
    ///
    /// # Errors
    /// As there.
    fn export(&self, export: Export<Map<String, Value>>) -> Result<Export<Map<String, Value>>>;

    /// [`Family::sites`].
    fn sites(&self, shapes: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, (usize, usize)>;

    /// The keys with every default filled in.
    ///
    /// # Errors
    /// If a value is out of range; the message names key and value.
    fn check(&self, own: &Map<String, Value>) -> Result<Map<String, Value>>;

    /// [`Family::attach`].
    ///
    /// # Errors
    /// As there.
    fn attach(&self, own: &Map<String, Value>, cx: &mut Attach<'_>) -> Result<Attachment>;
}

impl<F: Family> AnyFamily for F {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn defaults(&self) -> Map<String, Value> {
        self.check(&Map::new()).unwrap_or_default()
    }

    fn fixed(&self) -> Vec<(&'static str, Value)> {
        F::fixed()
    }

    fn notes(&self) -> &'static [&'static str] {
        F::notes()
    }

    fn lacks(&self) -> &'static [&'static str] {
        F::lacks()
    }

    fn targeted_bias(&self) -> String {
        F::targeted_bias()
    }

    fn read_as(
        &self,
        own: &Map<String, Value>,
        base: Option<ResidualBase>,
    ) -> Result<Map<String, Value>> {
        written::<F>(&F::read_as(parse_each(own)?, base)?)
    }

    fn export(&self, export: Export<Map<String, Value>>) -> Result<Export<Map<String, Value>>> {
        let export = F::export(Export {
            config: parse_each(&export.config)?,
            tensors: export.tensors,
            scratch: export.scratch,
        })?;
        Ok(Export {
            config: written::<F>(&export.config)?,
            tensors: export.tensors,
            scratch: export.scratch,
        })
    }

    fn sites(&self, shapes: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, (usize, usize)> {
        F::sites(shapes)
    }

    fn check(&self, own: &Map<String, Value>) -> Result<Map<String, Value>> {
        written::<F>(&parse_each(own)?)
    }

    fn attach(&self, own: &Map<String, Value>, cx: &mut Attach<'_>) -> Result<Attachment> {
        Family::attach(self, &parse_each(own)?, cx)
    }
}

/// A configuration as JSON.
fn written<F: Family>(config: &F::Config) -> Result<Map<String, Value>> {
    match serde_json::to_value(config) {
        Ok(Value::Object(keys)) => Ok(keys),
        other => Err(crate::Error::Other(format!(
            "the configuration of {} became {other:?}",
            F::NAME
        ))),
    }
}
