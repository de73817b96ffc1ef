//! What ResLoRA declares at each site, and how it joins them.

use crate::ResloraConfig;
use crate::chain::{Block, Place};
use crate::layer::Layer;
use crate::norms::{Norm, Windows};
use lowrank_adapter::{
    Adapter, Attach, Attachment, Controller, Family, Init, LORA_B, Result, SiteId, Spec,
};
use std::sync::OnceLock;

/// LoRA with shortcuts between the blocks of one projection.
#[derive(Debug)]
pub struct Reslora;

impl Family for Reslora {
    type Config = ResloraConfig;
    const NAME: &'static str = "reslora";

    fn attach(&self, config: &ResloraConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        let mut blocks = Vec::new();
        for site in cx.site_ids() {
            let found = block(config, cx, site);
            blocks.push(found.map_err(|error| error.at(&cx.site(site).path))?);
        }
        let norms = blocks
            .iter()
            .filter_map(|block| Some((block.site, block.norm.clone()?)));
        let windows = config.measures().then(|| Windows::new(norms));
        let places = Place::all(cx, blocks).into_iter();
        let layer = |place| -> Box<dyn Adapter> { Box::new(Layer::new(config, place)) };
        Ok(Attachment {
            adapters: places.map(layer).collect(),
            controller: windows.map(|windows| -> Box<dyn Controller> { Box::new(windows) }),
        })
    }
}

fn block(config: &ResloraConfig, cx: &mut Attach<'_>, site: SiteId) -> Result<Block> {
    let (n_out, n_in) = cx.site(site).dims();
    let rank = config.r.get();
    cx.check_rank(site, rank)?;
    let a = Spec::new("lora_A.weight", (rank, n_in)).rank_axis(0);
    let b = Spec::new("lora_B.weight", (n_out, rank))
        .rank_axis(1)
        .group(LORA_B);
    let (a, b) = (
        cx.declare(site, a.init(Init::KaimingUniform))?,
        cx.declare(site, b)?,
    );
    let norm = match config.measures() {
        true => Some(Norm::declare(cx, site)?),
        false => None,
    };
    Ok(Block {
        site,
        path: cx.site(site).path.clone(),
        a,
        b,
        norm,
        base: cx.site(site).base.clone(),
        square: OnceLock::new(),
    })
}
