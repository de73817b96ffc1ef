//! Rotary position embedding as in Hugging Face's LLaMA: the two halves of a head rotate against each other.

use crate::float::with_float;
use crate::rows::for_rows;
use crate::tape::{self, Backward, Inputs};
use crate::{Error, Float, Result, composed, data, unwritten};
use candle_core::{DType, Tensor};
use std::f64::consts::PI;
use std::sync::Arc;

/// How frequencies are stretched for contexts longer than those of pre-training (`rope_scaling`).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RotaryScaling {
    /// As trained.
    #[default]
    None,
    /// Every frequency divided by `factor` (`"linear"`).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between interpolated (`"llama3"`).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Waves longer than the original context divided by this are low.
        low_freq_factor: f64,
        /// Waves shorter than the original context divided by this are high.
        high_freq_factor: f64,
        /// The context of pre-training, in tokens.
        original_max_position_embeddings: usize,
    },
}

/// The frequencies of a model's heads. Sines and cosines are computed for the positions of each call.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryTable {
    head_dim: usize,
    /// What f32 tensors rotate by, computed in f32 as transformers does: it trained with this rounding.
    single: Vec<f32>,
    double: Vec<f64>,
}

impl RotaryTable {
    /// For heads of `head_dim` numbers with base `theta`.
    ///
    /// # Errors
    /// If `head_dim` is odd or 0, or `theta` or a factor is not a positive number.
    pub fn new(head_dim: usize, theta: f64, scaling: &RotaryScaling) -> Result<Self> {
        let argument = |what| {
            Err(Error::Argument {
                op: "RotaryTable",
                what,
            })
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return argument(format!(
                "head_dim is {head_dim}, expected an even number above 0"
            ));
        }
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if !positive(theta) {
            return argument(format!("theta is {theta}, expected a number above 0"));
        }
        match *scaling {
            RotaryScaling::None => {}
            RotaryScaling::Linear { factor } if positive(factor) => {}
            RotaryScaling::Linear { factor } => {
                return argument(format!("factor is {factor}, expected a number above 0"));
            }
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                ..
            } => {
                if !positive(factor) || !positive(low) || !positive(high) || low >= high {
                    return argument(format!(
                        "llama3 scaling has factor {factor}, low_freq_factor {low} and high_freq_factor {high}, \
                         expected numbers above 0, the low one below the high one"
                    ));
                }
            }
        }
        let pairs = 0..head_dim / 2;
        let single = |pair: usize| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            let power = (theta as f32 as f64).powf(f64::from(exponent)) as f32;
            scaled_single(1.0 / power, scaling)
        };
        let double = |pair: usize| {
            scaled(
                theta.powf((2 * pair) as f64 / head_dim as f64).recip(),
                scaling,
            )
        };
        Ok(Self {
            head_dim,
            single: pairs.clone().map(single).collect(),
            double: pairs.map(double).collect(),
        })
    }

    /// The length of the heads that this table rotates.
    #[must_use]
    pub const fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Radians a token, for each of the head_dim / 2 pairs, as f32 tensors are rotated.
    #[must_use]
    pub fn frequencies(&self) -> &[f32] {
        &self.single
    }

    /// Cosine and sine of an angle, for a dtype.
    pub(crate) fn turn<T: Float>(&self, position: u32, pair: usize) -> (T, T) {
        let angle = match T::DTYPE {
            // The angle itself is rounded to f32 in transformers; its sine and cosine are exact for that angle.
            DType::F32 => f64::from(position as f32 * self.single[pair]),
            _ => f64::from(position) * self.double[pair],
        };
        (T::from_f64(angle.cos()), T::from_f64(angle.sin()))
    }
}

/// Rotates `x` [batch, heads, tokens, head_dim] by `positions`, one for each of batch * tokens.
///
/// With x1 and x2 the halves of a head: y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin.
///
/// # Errors
/// If the shapes do not fit or the dtype is neither f32 nor f64.
pub fn rotary(x: &Tensor, table: &RotaryTable, positions: &[u32]) -> Result<Tensor> {
    let (batch, tokens) = match x.dims() {
        [batch, _, tokens, head_dim] if *head_dim == table.head_dim => (*batch, *tokens),
        dims => {
            return Err(Error::Shape {
                op: "rotary",
                what: "x",
                got: dims.to_vec(),
                expected: format!("[batch, heads, tokens, {}]", table.head_dim),
            });
        }
    };
    if positions.len() != batch * tokens {
        let (got, expected) = (
            vec![positions.len()],
            format!("{batch} * {tokens} positions"),
        );
        return Err(Error::Shape {
            op: "rotary",
            what: "positions",
            got,
            expected,
        });
    }
    if composed::replaces("rotary", x)? {
        return composed::rotary(x, table, positions);
    }
    let x = x.contiguous()?;
    with_float!("rotary", x.dtype(), T => {
        let op = Rotary::<T>::new(table, positions);
        let y = op.rotate(&data(&x)?, x.dims4()?, T::ONE);
        let [y] = tape::record("rotary", &[&x], [(y, x.shape().clone())], op)?;
        Ok(y)
    })
}

fn scaled(frequency: f64, scaling: &RotaryScaling) -> f64 {
    match *scaling {
        RotaryScaling::None => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let context = original_max_position_embeddings as f64;
            let wave = 2.0 * PI / frequency;
            if wave > context / low_freq_factor {
                frequency / factor
            } else if wave < context / high_freq_factor {
                frequency
            } else {
                let smooth =
                    (context / wave - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

/// [`scaled`] with every step rounded to f32, except that Python keeps the bounds as doubles and torch rounds
/// them when it compares.
fn scaled_single(frequency: f32, scaling: &RotaryScaling) -> f32 {
    match *scaling {
        RotaryScaling::None => frequency,
        RotaryScaling::Linear { factor } => frequency / factor as f32,
        RotaryScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let context = original_max_position_embeddings as f64;
            let wave = (2.0 * PI) as f32 / frequency;
            if wave > (context / low_freq_factor) as f32 {
                frequency / factor as f32
            } else if wave < (context / high_freq_factor) as f32 {
                frequency
            } else {
                let span = (high_freq_factor - low_freq_factor) as f32;
                let smooth = (context as f32 / wave - low_freq_factor as f32) / span;
                (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
            }
        }
    }
}

/// The turns of a batch's tokens.
pub(crate) struct Rotary<T> {
    /// (cosine, sine) of every distinct position, head_dim / 2 of them each.
    turns: Vec<(T, T)>,
    /// Which of those rows each of batch * tokens has.
    rows: Vec<usize>,
}

impl<T: Float> Rotary<T> {
    pub(crate) fn new(table: &RotaryTable, positions: &[u32]) -> Self {
        // The rows of a batch share most of their positions, and a sine costs more than a rotation.
        let mut distinct = positions.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let row = |position| distinct.partition_point(|other| other < position);
        let rows = positions.iter().map(row).collect();
        let pairs = table.head_dim / 2;
        let turns = (distinct.iter())
            .flat_map(|position| (0..pairs).map(|pair| table.turn(*position, pair)))
            .collect();
        Self { turns, rows }
    }

    /// `x` [batch, heads, tokens, head_dim] rotated by the angles times `sign`.
    fn rotate(&self, x: &[T], dims: (usize, usize, usize, usize), sign: T) -> Vec<T> {
        let (_, heads, tokens, head_dim) = dims;
        let mut y = unwritten(x.len());
        for_rows(&mut y, head_dim, |row, y| {
            let (sequence, token) = (row / (heads * tokens), row % tokens);
            let x = &x[row * head_dim..][..head_dim];
            self.turn(sequence * tokens + token, x, y, sign);
        });
        y
    }

    /// One head of the token numbered `token` in the batch, rotated by its angles times `sign`.
    #[inline(always)]
    pub(crate) fn turn(&self, token: usize, x: &[T], y: &mut [T], sign: T) {
        let pairs = x.len() / 2;
        let turns = &self.turns[self.rows[token] * pairs..][..pairs];
        let (x1, x2) = x.split_at(pairs);
        let (y1, y2) = y.split_at_mut(pairs);
        for (pair, (cos, sin)) in turns.iter().enumerate() {
            let sin = *sin * sign;
            y1[pair] = x1[pair] * *cos - x2[pair] * sin;
            y2[pair] = x2[pair] * *cos + x1[pair] * sin;
        }
    }
}

impl<T: Float> Backward<T> for Rotary<T> {
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()> {
        if let Some(grad) = &grads[0] {
            // The inverse of a rotation is its transpose.
            let x_grad = self.rotate(grad, inputs.tensor(0).dims4()?, -T::ONE);
            inputs.add(0, Arc::new(x_grad));
        }
        Ok(())
    }
}
