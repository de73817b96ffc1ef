//! A model of two layers over given points, logits = W2 tanh(W1 x), with the answers that a teacher gives: where an update
//! was planted, and of which rank, is known.

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    Ask, Batch, Error, KvCache, Linear, Model, Part, Pass, Result, Tokens, UNSUPERVISED,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose, Stream};

/// The model. A token is the number of a point; the loss of a row is the cross-entropy with the answer to its point.
///
/// Both layers are adapted by "all-linear": `first` `[hidden, n_in]`, and `second` `[classes, hidden]`, which lies in the
/// head.
#[derive(Debug)]
pub struct Planted {
    first: Linear,
    second: Linear,
    points: Tensor,
    answers: Tensor,
}

impl Planted {
    /// `first` is W1, `second` W2; `points` are `[count, n_in]`, `answers` `[count, classes]` probabilities.
    ///
    /// # Errors
    /// If a weight cannot be frozen.
    pub fn new(first: Tensor, second: Tensor, points: Tensor, answers: Tensor) -> Result<Self> {
        Ok(Self {
            first: Linear::new("first", FrozenLinear::new(first, None)?),
            second: Linear::new("second", FrozenLinear::new(second, None)?),
            points,
            answers,
        })
    }

    /// A student of 8 inputs, 8 hidden numbers and 5 classes, whose teacher differs from it in W1 alone, by a matrix of
    /// rank 3; and the mean entropy of the answers to all points, below which no loss can come. f32.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn task(seed: u64, count: usize) -> Result<Self> {
        const WIDTH: usize = 8;
        const CLASSES: usize = 5;
        const RANK: usize = 3;
        let draw = |what: &str, std: f64, rows: usize, columns: usize| {
            let mut stream = Key::new(seed, Purpose::Test).site(what).stream();
            normal(&mut stream, std, rows, columns)
        };
        let root = (WIDTH as f64).sqrt();
        let first = draw("first", 1.0 / root, WIDTH, WIDTH)?;
        let second = draw("second", 1.5, CLASSES, WIDTH)?;
        let update = draw("u", 1.0, WIDTH, RANK)?.matmul(&draw("v", 1.0 / root, RANK, WIDTH)?)?;
        let points = draw("points", 1.0, count, WIDTH)?;
        let taught = points.matmul(&(&first + update)?.t()?)?.tanh()?;
        let logits = taught.matmul(&second.t()?)?;
        let answers = logits.broadcast_sub(&log_sum_exp(&logits)?)?.exp()?;
        let single = |tensor: &Tensor| tensor.to_dtype(DType::F32);
        Self::new(
            single(&first)?,
            single(&second)?,
            single(&points)?,
            single(&answers)?,
        )
    }

    /// The tokens and labels of the row that asks about a point.
    #[must_use]
    pub fn row(point: u32) -> ([u32; 2], [i32; 2]) {
        ([point, 0], [UNSUPERVISED, 0])
    }

    /// A batch that asks about these points.
    ///
    /// # Errors
    /// If there are none.
    pub fn batch(points: impl IntoIterator<Item = u32>) -> Result<Batch> {
        let rows: Vec<_> = points.into_iter().map(Self::row).collect();
        let tokens = Tokens {
            rows: rows.len(),
            length: 2,
            ids: rows.iter().flat_map(|(ids, _)| *ids).collect(),
            segments: vec![1; 2 * rows.len()],
            positions: [0, 1].repeat(rows.len()),
        };
        Batch::new(
            tokens,
            rows.iter().flat_map(|(_, labels)| *labels).collect(),
        )
    }

    /// The mean entropy of the answers to these points: the loss of the teacher.
    ///
    /// # Errors
    /// If there is no such point.
    pub fn entropy(&self, points: impl IntoIterator<Item = u32>) -> Result<f64> {
        let points: Vec<u32> = points.into_iter().collect();
        let count = points.len() as f64;
        let answers = self
            .answers
            .index_select(&Tensor::new(points, &Device::Cpu)?, 0)?;
        let answers = answers.to_dtype(DType::F64)?;
        let terms = (&answers * answers.log()?)?.sum_all()?;
        Ok(-terms.to_scalar::<f64>()? / count)
    }
}

/// `[rows, columns]` in f64.
fn normal(stream: &mut Stream, std: f64, rows: usize, columns: usize) -> Result<Tensor> {
    let numbers: Vec<f64> = (0..rows * columns).map(|_| std * stream.normal()).collect();
    Ok(Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)?)
}

/// `[rows, classes]` -> `[rows, 1]`.
fn log_sum_exp(logits: &Tensor) -> Result<Tensor> {
    let highest = logits.detach().max_keepdim(1)?;
    let sums = logits.broadcast_sub(&highest)?.exp()?.sum_keepdim(1)?;
    Ok((sums.log()? + highest)?)
}

impl Model for Planted {
    fn model_type(&self) -> &str {
        "planted"
    }

    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        visit(Part::Linear(&mut self.first));
        visit(Part::Linear(&mut self.second));
    }

    fn embed(&self, batch: &Batch, _: &mut Pass) -> Result<Tensor> {
        let Tokens {
            rows, length, ids, ..
        } = &**batch.tokens();
        let points = Tensor::new(ids.as_slice(), &Device::Cpu)?;
        let points = self.points.index_select(&points, 0)?;
        Ok(points.reshape((*rows, *length, ()))?)
    }

    fn blocks(&self) -> usize {
        1
    }

    fn block(
        &self,
        _: usize,
        h: &Tensor,
        _: &Batch,
        _: Option<&mut KvCache>,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        Ok(self.first.forward(h, pass)?.tanh()?)
    }

    fn head(&self, h: &Tensor, batch: &Batch, ask: &Ask, pass: &mut Pass) -> Result<Tensor> {
        let positions: Vec<u32> = match ask {
            Ask::Losses => batch.targets().into_iter().map(|(at, _)| at).collect(),
            Ask::Logits(positions) => positions.clone(),
            Ask::Classes | Ask::Hidden => return Err(ask.refused("planted task")),
        };
        let (rows, length, hidden) = h.dims3()?;
        let h = ops::gather_rows(&h.reshape((rows * length, hidden))?, &positions)?;
        let logits = self.second.forward(&h, pass)?;
        if let Ask::Logits(_) = ask {
            return Ok(logits);
        }
        let ids = positions
            .iter()
            .map(|&at| batch.tokens().ids.get(at as usize));
        let ids: Option<Vec<u32>> = ids.map(|id| id.copied()).collect();
        let ids = ids.ok_or_else(|| Error::Other("a target lies outside of the batch".into()))?;
        let answers = self
            .answers
            .index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?;
        let expected = (logits.clone() * answers)?.sum_keepdim(1)?;
        Ok((log_sum_exp(&logits)? - expected)?.squeeze(1)?)
    }
}
