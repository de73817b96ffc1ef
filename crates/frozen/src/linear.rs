//! The frozen linear layer: a product whose weight is not part of the graph.

use crate::kernels::Direction;
use crate::product::{Double, Factor as _, Single};
use crate::stored::Form;
use crate::{Compute, Encoding, Error, Result, Stored};
use crate::{device, head, recorded};
use candle_core::{DType, Device, Tensor};
use lowrank_ops::gemm::Before;
use lowrank_ops::{self as ops, Dropout, composed};

/// A linear layer that is never trained. Its operations own the weight, so candle sees one tracked argument and no
/// gradient of the weight's size is ever computed. Clones share the weight.
#[derive(Debug, Clone)]
pub struct FrozenLinear {
    weight: Weight,
    bias: Option<Tensor>,
    compute: Compute,
}

#[derive(Debug, Clone)]
enum Weight {
    Stored(Stored),
    /// Only the shape is known.
    Absent {
        dims: (usize, usize),
    },
}

impl FrozenLinear {
    /// `weight` `[n_out, n_in]` in f32, f64, f16 or bf16, `bias` `[n_out]`. Both are taken detached.
    ///
    /// # Errors
    /// If the shapes do not fit, or the dtype is another one.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let weight = Stored::new(weight)?;
        let (n_out, _) = weight.dims();
        if let Some(bias) = &bias
            && bias.dims() != [n_out]
        {
            return Err(refuse("the bias", bias, format!("[{n_out}]")));
        }
        Ok(Self {
            weight: Weight::Stored(weight),
            bias: bias.map(|bias| bias.detach()),
            compute: Compute::F32,
        })
    }

    /// A layer without bias whose weight `[n_out, n_in]` stays as it is held.
    #[must_use]
    pub const fn stored(weight: Stored) -> Self {
        Self {
            weight: Weight::Stored(weight),
            bias: None,
            compute: Compute::F32,
        }
    }

    /// A layer of which only the shape is known: adapters attach to it and can be counted and inspected, and every
    /// product is refused.
    #[must_use]
    pub const fn absent(n_out: usize, n_in: usize) -> Self {
        Self {
            weight: Weight::Absent {
                dims: (n_out, n_in),
            },
            bias: None,
            compute: Compute::F32,
        }
    }

    /// (n_out, n_in).
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        match &self.weight {
            Weight::Stored(weight) => weight.dims(),
            Weight::Absent { dims } => *dims,
        }
    }

    /// The same layer on a device: see [`Stored::to_device`]. An absent weight is nowhere.
    ///
    /// # Errors
    /// If the device has no room, or refuses.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| bias.to_device(device));
        Ok(Self {
            weight: match &self.weight {
                Weight::Stored(weight) => Weight::Stored(weight.to_device(device)?),
                Weight::Absent { dims } => Weight::Absent { dims: *dims },
            },
            bias: bias.transpose()?,
            compute: self.compute,
        })
    }

    /// Where the weight lies, and inputs must.
    #[must_use]
    pub fn device(&self) -> Device {
        match &self.weight {
            Weight::Stored(weight) => weight.device(),
            Weight::Absent { .. } => Device::Cpu,
        }
    }

    /// The dtype of inputs and outputs: f32 where the weight is packed.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match &self.weight {
            Weight::Stored(weight) => weight.dtype(),
            Weight::Absent { .. } => DType::F32,
        }
    }

    /// How the weight is held; `None` if it is absent.
    #[must_use]
    pub fn encoding(&self) -> Option<Encoding> {
        match &self.weight {
            Weight::Stored(weight) => Some(weight.encoding()),
            Weight::Absent { .. } => None,
        }
    }

    /// Bytes of weight and bias in memory; an absent weight has none.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let weight = match &self.weight {
            Weight::Stored(weight) => weight.bytes(),
            Weight::Absent { .. } => 0,
        };
        let bias = self.bias.as_ref();
        weight + bias.map_or(0, |bias| bias.elem_count() * bias.dtype().size_in_bytes())
    }

    /// The weight `[n_out, n_in]` as a dense tensor in [`Self::dtype`], detached; a copy if it is packed.
    ///
    /// # Errors
    /// If the weight is absent.
    pub fn weight(&self) -> Result<Tensor> {
        self.form()?.to_dense()
    }

    /// The bias `[n_out]`.
    #[must_use]
    pub const fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The same weight with another bias, which may be trained.
    #[must_use]
    pub fn with_bias(&self, bias: Option<Tensor>) -> Self {
        Self {
            weight: self.weight.clone(),
            bias,
            compute: self.compute,
        }
    }

    /// The same layer with its products computed in another way. An f64 weight is an oracle and stays computed with in
    /// f64, whatever this says.
    #[must_use]
    pub fn with_compute(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }

    /// What products are computed in; an f64 weight has this for its copies only.
    #[must_use]
    pub const fn compute(&self) -> Compute {
        self.compute
    }

    /// y = x W^T + bias: `x` (.., n_in) -> (.., n_out).
    ///
    /// # Errors
    /// If the last dimension or the dtype of `x` is not the weight's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.input(x)?;
        if composed::used_for(&x) {
            return self.shifted(device::product(&self.weight()?, &x)?);
        }
        let y = match &self.form()?.0 {
            Form::Dense(weight) if weight.dtype() == DType::F64 => {
                recorded::product(Double::new(weight), &x)?
            }
            _ => recorded::product(self.single()?, &x)?,
        };
        self.shifted(y)
    }

    /// y = x W^T + h B^T + bias: `x` (.., n_in), `h` (.., r), `b` `[n_out, r]` -> (.., n_out), in one operation.
    ///
    /// # Errors
    /// If the shapes or dtypes do not fit.
    pub fn forward_plus(&self, x: &Tensor, h: &Tensor, b: &Tensor) -> Result<Tensor> {
        let x = self.input(x)?;
        let rank = h.dims().last().copied().unwrap_or(0);
        let lead = |t: &Tensor| t.dims()[..t.rank().saturating_sub(1)].to_vec();
        if lead(h) != lead(&x) {
            return Err(refuse("h", h, format!("{:?} and a rank", lead(&x))));
        }
        if b.dims() != [self.dims().0, rank] {
            return Err(refuse("B", b, format!("[{}, {rank}]", self.dims().0)));
        }
        for (what, tensor) in [("h", h), ("B", b)] {
            if tensor.dtype() != self.dtype() {
                return Err(self.wrong_dtype(what, tensor));
            }
        }
        if composed::used_for(&x) {
            return self.shifted(device::product_plus(&self.weight()?, &x, h, b)?);
        }
        let (h, b) = (h.contiguous()?, b.contiguous()?);
        let y = match &self.form()?.0 {
            Form::Dense(weight) if weight.dtype() == DType::F64 => {
                recorded::product_plus(Double::new(weight), &x, &h, &b)?
            }
            _ => recorded::product_plus(self.single()?, &x, &h, &b)?,
        };
        self.shifted(y)
    }

    /// y = x W^T + scale * (x A^T) B^T + bias: `a` `[r, n_in]`, `b` `[n_out, r]`.
    ///
    /// # Errors
    /// If the shapes or dtypes do not fit.
    pub fn forward_low_rank(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        scale: f64,
    ) -> Result<Tensor> {
        self.low_rank(x, (a, b), scale, None)
    }

    /// The same with a dropout on what A sees: y = x W^T + scale * (drop(x) A^T) B^T + bias.
    ///
    /// # Errors
    /// If the last dimension or the dtype of `x` is not the weight's, or A or B do not fit.
    pub fn forward_low_rank_dropped(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        scale: f64,
        dropout: Dropout,
    ) -> Result<Tensor> {
        self.low_rank(x, (a, b), scale, Some(dropout))
    }

    /// y = x W^T + bias with scale * drop(x) A^T added at the given outputs, one for each row of `a` `[r, n_in]`: a low-rank
    /// update whose B picks outputs.
    ///
    /// # Errors
    /// If the last dimension or the dtype of `x` is not the weight's, A does not fit, or an output is out of range.
    pub fn forward_low_rank_at(
        &self,
        x: &Tensor,
        a: &Tensor,
        outputs: &[u32],
        scale: f64,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let x = self.input(x)?;
        let (n_out, n_in) = self.dims();
        if a.dims() != [outputs.len(), n_in] {
            return Err(refuse("A", a, format!("{:?}", [outputs.len(), n_in])));
        }
        if a.dtype() != self.dtype() {
            return Err(self.wrong_dtype("A", a));
        }
        if let Some(output) = outputs.iter().find(|output| **output as usize >= n_out) {
            return Err(Error::Ops(ops::Error::Index {
                op: "FrozenLinear::forward_low_rank_at",
                index: *output as usize,
                len: n_out,
            }));
        }
        if composed::used_for(&x) {
            let weight = self.weight()?;
            return self.shifted(device::product_at(&weight, &x, a, outputs, scale, dropout)?);
        }
        let a = a.contiguous()?;
        let y = match &self.form()?.0 {
            Form::Dense(weight) if weight.dtype() == DType::F64 => {
                recorded::product_at(Double::new(weight), &x, &a, outputs, scale, dropout)?
            }
            _ => recorded::product_at(self.single()?, &x, &a, outputs, scale, dropout)?,
        };
        self.shifted(y)
    }

    fn low_rank(
        &self,
        x: &Tensor,
        (a, b): (&Tensor, &Tensor),
        scale: f64,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let x = self.input(x)?;
        let (n_out, n_in) = self.dims();
        let rank = b.dims().last().copied().unwrap_or(0);
        for (what, tensor, dims) in [("A", a, [rank, n_in]), ("B", b, [n_out, rank])] {
            if tensor.dims() != dims {
                return Err(refuse(what, tensor, format!("{dims:?}")));
            }
            if tensor.dtype() != self.dtype() {
                return Err(self.wrong_dtype(what, tensor));
            }
        }
        if composed::used_for(&x) {
            let weight = self.weight()?;
            return self.shifted(device::product_low_rank(
                &weight,
                &x,
                (a, b),
                scale,
                dropout,
            )?);
        }
        let (a, b) = (a.contiguous()?, b.contiguous()?);
        let y = match &self.form()?.0 {
            Form::Dense(weight) if weight.dtype() == DType::F64 => {
                recorded::product_low_rank(Double::new(weight), &x, (&a, &b), scale, dropout)?
            }
            _ => recorded::product_low_rank(self.single()?, &x, (&a, &b), scale, dropout)?,
        };
        self.shifted(y)
    }

    /// `-log softmax(y)[target]` of every row of y = x W^T + bias: `x` `[targets, n_in]` -> `[targets]`. Without a bias the
    /// logits of all rows never exist at once, and the gradient of x is found along with the losses.
    ///
    /// # Errors
    /// If `x` does not fit, or a target is not below n_out.
    pub fn cross_entropy(&self, x: &Tensor, targets: &[u32]) -> Result<Tensor> {
        self.smoothed_cross_entropy(x, targets, 0.0)
    }

    /// [`Self::cross_entropy`] with labels smoothed as [`ops::smoothed_cross_entropy`] does.
    ///
    /// # Errors
    /// As [`Self::cross_entropy`], and if `smoothing` is not in [0, 1).
    pub fn smoothed_cross_entropy(
        &self,
        x: &Tensor,
        targets: &[u32],
        smoothing: f64,
    ) -> Result<Tensor> {
        ops::check_smoothing(smoothing)?;
        let x = self.input(x)?;
        let (n_out, n_in) = self.dims();
        if x.dims() != [targets.len(), n_in] {
            return Err(refuse("x", &x, format!("[{}, {n_in}]", targets.len())));
        }
        if self.bias.is_some() || composed::used_for(&x) {
            let logits = self.forward(&x)?;
            return Ok(ops::smoothed_cross_entropy(&logits, targets, smoothing)?);
        }
        if let Some(target) = targets.iter().find(|target| **target as usize >= n_out) {
            return Err(Error::Ops(ops::Error::Index {
                op: "FrozenLinear::cross_entropy",
                index: *target as usize,
                len: n_out,
            }));
        }
        match &self.form()?.0 {
            Form::Dense(weight) if weight.dtype() == DType::F64 => {
                head::cross_entropy(&Double::new(weight), &x, targets, smoothing)
            }
            _ => head::cross_entropy(&self.single()?, &x, targets, smoothing),
        }
    }

    /// A product over slices, without bias: x W^T with `x` `[rows, n_in]` and `into` `[rows, n_out]`, or x W with the two
    /// exchanged, in place of what `into` holds or added to it.
    ///
    /// # Errors
    /// If the lengths do not fit, or the weight is absent or of f64.
    pub fn product_into(
        &self,
        direction: Direction,
        x: &[f32],
        rows: usize,
        before: Before,
        into: &mut [f32],
    ) -> Result<()> {
        if self.dtype() == DType::F64 {
            return Err(Error::Ops(ops::Error::Argument {
                op: "FrozenLinear",
                what: "a product over slices is of f32, the weight has f64".into(),
            }));
        }
        self.single()?
            .product(direction, x, rows, None, before, into)
    }

    /// The weight as a factor of products in f32 or bf16.
    fn single(&self) -> Result<Single> {
        Ok(Single::new(self.form()?, self.compute))
    }

    fn form(&self) -> Result<&Stored> {
        match &self.weight {
            Weight::Stored(weight) => Ok(weight),
            Weight::Absent { dims } => Err(Error::Absent {
                n_out: dims.0,
                n_in: dims.1,
            }),
        }
    }

    fn input(&self, x: &Tensor) -> Result<Tensor> {
        let (_, n_in) = self.dims();
        if x.dims().last() != Some(&n_in) {
            return Err(refuse("x", x, format!("(.., {n_in})")));
        }
        if x.dtype() != self.dtype() {
            return Err(self.wrong_dtype("x", x));
        }
        Ok(x.contiguous()?)
    }

    fn shifted(&self, y: Tensor) -> Result<Tensor> {
        Ok(match &self.bias {
            Some(bias) => ops::add_bias(&y, bias)?,
            None => y,
        })
    }

    fn wrong_dtype(&self, what: &str, tensor: &Tensor) -> Error {
        Error::Ops(ops::Error::Argument {
            op: "FrozenLinear",
            what: format!(
                "{what} has dtype {}, the weight has {}",
                tensor.dtype().as_str(),
                self.dtype().as_str()
            ),
        })
    }
}

fn refuse(what: &'static str, tensor: &Tensor, expected: String) -> Error {
    Error::Ops(ops::Error::Shape {
        op: "FrozenLinear",
        what,
        got: tensor.dims().to_vec(),
        expected,
    })
}
