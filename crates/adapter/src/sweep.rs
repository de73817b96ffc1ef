//! The gradient of one micro-batch, block by block.
//!
//! The graph is cut at every block boundary: a block's input, and what chains carry into it, are fresh leaves. Blocks
//! run backward in reverse, each from the gradients that the next one left, and a block's graph is dropped when done.
//! [`Memory`] only decides whether that graph was kept from the forward pass or is built again.

use crate::Result;
use crate::model::{Ask, Batch, Model, embed};
use crate::pass::{Carries, Pass, Records};
use candle_core::{DType, Tensor, Var};
use lowrank_ops::{self as ops, Grads, Param, Seed};

/// What is kept between the forward and the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Every block's graph.
    Keep,
    /// Every block's input only; the graph is built again when its turn comes.
    Recompute,
}

/// What a micro-batch counts for in its step.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Factor of the sum of token losses: 1 / supervised tokens of the whole step.
    pub token: f64,
    /// Factor of auxiliary losses: tokens of this micro-batch / tokens of the whole step.
    pub auxiliary: f64,
}

/// What a micro-batch gave.
#[derive(Debug)]
pub struct Swept {
    /// Gradients of `token * sum of losses + auxiliary * sum of auxiliary losses`.
    pub grads: Grads,
    /// Losses of the supervised tokens, `[targets]`, detached.
    pub losses: Tensor,
    /// Auxiliary losses, unscaled.
    pub auxiliary: f64,
    /// What adapters recorded.
    pub records: Records,
}

/// What [`sweep`] holds of a micro-batch until its backward pass, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// What enters each block.
    pub inputs: Vec<usize>,
    /// Each block's graph, the parameters in it included; 0 below the first block that trains.
    pub graphs: Vec<usize>,
    /// The graph of the losses, but for the last block's output.
    pub head: usize,
    /// Whether that graph holds all logits, as it does where the head is changed or has a bias.
    pub logits: bool,
}

/// Runs a micro-batch forward as [`sweep`] does and measures what would be held; nothing is held longer than its block.
/// The head runs twice, and once with logits of all targets: a batch of a few rows tells enough.
///
/// # Errors
/// Whatever the model or an operation refuses.
pub fn footprint(model: &dyn Model, batch: &Batch, pass: &mut Pass) -> Result<Footprint> {
    pass.set_tokens(batch.tokens());
    let sweep = Sweep {
        model,
        batch,
        pass,
        params: &[],
        share: Share {
            token: 1.0,
            auxiliary: 1.0,
        },
    };
    sweep.measure()
}

/// A stretch of the model between two cuts, after its forward pass.
struct Stretch {
    inputs: Leaves,
    /// Present if the graph was kept.
    outputs: Option<Outputs>,
    /// Whether anything in it, or before it, is trained.
    tracked: bool,
}

/// The hidden state and the carries that enter a stretch, as leaves if anything before them is trained.
struct Leaves {
    h: Tensor,
    carries: Carries,
    vars: Vec<Var>,
}

struct Outputs {
    h: Tensor,
    carries: Carries,
    losses: Vec<(&'static str, Tensor)>,
}

impl Outputs {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.h).chain(self.carries.values().flatten())
    }

    fn tracked(&self) -> bool {
        self.tensors()
            .chain(self.losses.iter().map(|(_, loss)| loss))
            .any(Tensor::track_op)
    }
}

impl Leaves {
    fn cut(h: &Tensor, carries: &Carries, tracked: bool) -> Result<Self> {
        let mut vars = Vec::new();
        let mut enter = |tensor: &Tensor| -> Result<Tensor> {
            if !tracked {
                return Ok(tensor.detach());
            }
            let var = ops::leaf(tensor)?;
            let leaf = var.as_tensor().clone();
            vars.push(var);
            Ok(leaf)
        };
        let h = enter(h)?;
        let mut entered = Carries::new();
        for (chain, tensors) in carries {
            entered.insert(
                chain.clone(),
                tensors.iter().map(&mut enter).collect::<Result<_>>()?,
            );
        }
        Ok(Self {
            h,
            carries: entered,
            vars,
        })
    }
}

/// Runs one micro-batch forward and backward; gradients of `params` only.
///
/// # Errors
/// Whatever the model or an operation refuses.
pub fn sweep(
    model: &dyn Model,
    batch: &Batch,
    pass: &mut Pass,
    params: &[Param],
    share: Share,
    memory: Memory,
) -> Result<Swept> {
    pass.set_tokens(batch.tokens());
    let sweep = Sweep {
        model,
        batch,
        pass,
        params,
        share,
    };
    // As in `run`: a loop that is begun outside of the pool costs two changes of threads.
    rayon::scope(|_| sweep.run(memory))
}

struct Sweep<'a> {
    model: &'a dyn Model,
    batch: &'a Batch,
    pass: &'a Pass,
    params: &'a [Param],
    share: Share,
}

impl Sweep<'_> {
    fn run(&self, memory: Memory) -> Result<Swept> {
        let mut records = Records::new();
        let mut auxiliary = 0.0;
        let mut account = |pass: &mut Pass| -> Result<()> {
            records.append(&mut pass.records);
            for (_, loss) in &pass.losses {
                auxiliary += loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            }
            Ok(())
        };

        // Forward. The embedding is stretch 0: its graph is tiny unless the table trains.
        let mut pass = self.pass.again();
        let h = embed(self.model, self.batch, &mut pass)?;
        account(&mut pass)?;
        let embedded = Outputs {
            h,
            carries: pass.carries,
            losses: pass.losses,
        };
        let mut tracked = embedded.tracked();
        let (mut h, mut carries) = (embedded.h.detach(), detached(&embedded.carries));
        let mut stretches = Vec::with_capacity(self.model.blocks());
        for i in 0..self.model.blocks() {
            let keep = memory == Memory::Keep;
            let inputs = Leaves::cut(&h, &carries, tracked && keep)?;
            // Without leaves this pass builds the block's graph only if the block itself trains, and drops it at once.
            let (outputs, mut pass) = self.block(i, &inputs)?;
            account(&mut pass)?;
            let below = tracked;
            tracked = tracked || outputs.tracked();
            (h, carries) = (outputs.h.detach(), detached(&outputs.carries));
            stretches.push(Stretch {
                inputs: if keep {
                    inputs
                } else {
                    Leaves {
                        vars: Vec::new(),
                        ..inputs
                    }
                },
                outputs: keep.then_some(outputs),
                tracked: below,
            });
        }
        let inputs = Leaves::cut(&h, &carries, tracked)?;
        let mut pass = self.pass.again();
        pass.carries.clone_from(&inputs.carries);
        let losses = self
            .model
            .head(&inputs.h, self.batch, &Ask::Losses, &mut pass)?;
        account(&mut pass)?;

        // Backward.
        let mut roots = vec![(ops::sum_all(&losses)? * self.share.token)?];
        self.push_auxiliary(&mut roots, &pass.losses)?;
        let mut grads = Grads::default();
        let mut incoming = self.descend(&roots, &inputs, &mut grads)?;
        let losses = losses.detach();
        // The head's graph holds the logits.
        drop((pass, inputs, roots));
        while let Some(stretch) = stretches.pop() {
            let i = stretches.len();
            let (inputs, outputs) = match stretch.outputs {
                Some(outputs) => (stretch.inputs, outputs),
                None => {
                    let inputs =
                        Leaves::cut(&stretch.inputs.h, &stretch.inputs.carries, stretch.tracked)?;
                    let (outputs, _) = self.block(i, &inputs)?;
                    (inputs, outputs)
                }
            };
            incoming = self.descend(&self.roots(&outputs, &incoming)?, &inputs, &mut grads)?;
        }
        let bottom = Leaves {
            h: embedded.h.detach(),
            carries: Carries::new(),
            vars: Vec::new(),
        };
        self.descend(&self.roots(&embedded, &incoming)?, &bottom, &mut grads)?;
        Ok(Swept {
            grads,
            losses,
            auxiliary,
            records,
        })
    }

    fn measure(&self) -> Result<Footprint> {
        let mut found = Footprint {
            inputs: Vec::new(),
            graphs: Vec::new(),
            head: 0,
            logits: false,
        };
        let mut pass = self.pass.again();
        let h = embed(self.model, self.batch, &mut pass)?;
        let mut outputs = Outputs {
            h,
            carries: pass.carries,
            losses: pass.losses,
        };
        let mut tracked = outputs.tracked();
        for i in 0..self.model.blocks() {
            let inputs = Leaves::cut(&outputs.h, &outputs.carries, tracked)?;
            let size = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
            found.inputs.push(outputs.tensors().map(size).sum());
            (outputs, _) = self.block(i, &inputs)?;
            let losses = outputs.losses.iter().map(|(_, loss)| loss);
            let graph = ops::graph_bytes(outputs.tensors().chain(losses));
            found.graphs.push(graph);
            tracked = tracked || outputs.tracked();
        }
        let inputs = Leaves::cut(&outputs.h, &outputs.carries, tracked)?;
        let graph = |ask: &Ask| -> Result<usize> {
            let mut pass = self.pass.again();
            pass.carries.clone_from(&inputs.carries);
            let output = self.model.head(&inputs.h, self.batch, ask, &mut pass)?;
            Ok(ops::graph_bytes([&output]))
        };
        let targets = self.batch.targets().into_iter();
        let outputs = match self.batch.row_labels() {
            Some(_) => Ask::Classes,
            None => Ask::Logits(targets.map(|(at, _)| at).collect()),
        };
        let losses = graph(&Ask::Losses)?;
        // Losses that are made from logits keep more than these do.
        found.logits = losses > graph(&outputs)?;
        found.head = losses.saturating_sub(ops::graph_bytes([&inputs.h]));
        Ok(found)
    }

    fn block(&self, i: usize, inputs: &Leaves) -> Result<(Outputs, Pass)> {
        let mut pass = self.pass.again();
        pass.carries.clone_from(&inputs.carries);
        let h = self
            .model
            .block(i, &inputs.h, self.batch, None, &mut pass)?;
        let outputs = Outputs {
            h,
            carries: pass.carries.clone(),
            losses: pass.losses.clone(),
        };
        Ok((outputs, pass))
    }

    /// Scalars whose sum sends the incoming gradients into the outputs, and the stretch's own losses.
    fn roots(&self, outputs: &Outputs, incoming: &[Option<Tensor>]) -> Result<Vec<Tensor>> {
        let mut roots = Vec::new();
        for (output, grad) in outputs.tensors().zip(incoming) {
            if let Some(grad) = grad
                && output.track_op()
            {
                roots.push(Seed::apply(output, grad)?);
            }
        }
        self.push_auxiliary(&mut roots, &outputs.losses)?;
        Ok(roots)
    }

    fn push_auxiliary(
        &self,
        roots: &mut Vec<Tensor>,
        losses: &[(&'static str, Tensor)],
    ) -> Result<()> {
        for (_, loss) in losses.iter().filter(|(_, loss)| loss.track_op()) {
            roots.push((loss * self.share.auxiliary)?);
        }
        Ok(())
    }

    /// One backward; gradients of parameters are added up, those of the leaves returned.
    fn descend(
        &self,
        roots: &[Tensor],
        inputs: &Leaves,
        grads: &mut Grads,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut roots = roots.iter();
        let Some(first) = roots.next() else {
            return Ok(vec![None; inputs.vars.len()]);
        };
        let mut root = first.clone();
        for next in roots {
            root = (root + next)?;
        }
        let (new, leaves) =
            ops::backward(&root, self.params, &inputs.vars.iter().collect::<Vec<_>>())?;
        grads.merge(new)?;
        Ok(leaves)
    }
}

fn detached(carries: &Carries) -> Carries {
    carries
        .iter()
        .map(|(chain, tensors)| (chain.clone(), tensors.iter().map(Tensor::detach).collect()))
        .collect()
}
