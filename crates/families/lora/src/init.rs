//! `init_lora_weights`: its words, and the values that A and B start at.

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Error, Init, Result};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::linalg::{self, Svd};
use lowrank_ops::rng::Key;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// How A and B start. B is 0 and the base is whole where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// `true`: A uniform in ±1/sqrt(n_in).
    Default,
    /// `false`: A as above, B uniform in ±1/sqrt(r); does not start as the base model.
    Random,
    /// `"gaussian"`: A normal with standard deviation 1/r.
    Gaussian,
    /// `"orthogonal"`: A and B random in spaces that are orthogonal to one another, so that B A = 0. The rank is even.
    Orthogonal,
    /// `"pissa"`: s B A is the best approximation of W of rank r, and is subtracted from W.
    Pissa,
    /// `"pissa_niter_N"`: the same by random projection and N power iterations.
    PissaIterated(u8),
    /// `"olora"`: B and A are the leading columns of Q and rows of R in W = Q R, and s B A is subtracted from W.
    Olora,
    /// A start of PEFT that only files name here: their A and B are read, none are made.
    Foreign(Foreign),
}

/// Starts that are read and not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// `"corda"`: changes the base.
    Corda,
    /// `"eva"`: A from the layer's inputs.
    Eva,
    /// `"loftq"`: changes the base.
    Loftq,
    /// `"lora_ga"`: changes the base.
    LoraGa,
    /// `"mica"`: B from the smallest singular values.
    Mica,
}

const FOREIGN: [(&str, Foreign); 5] = [
    ("corda", Foreign::Corda),
    ("eva", Foreign::Eva),
    ("loftq", Foreign::Loftq),
    ("lora_ga", Foreign::LoraGa),
    ("mica", Foreign::Mica),
];

const EXPECTED: &str = "true, false, \"gaussian\", \"orthogonal\", \"pissa\", \"pissa_niter_N\" (N up to 255) or \"olora\"";

/// What PEFT does to the base at this start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// Nothing.
    Whole,
    /// It subtracts s B A, which can be computed from the base again.
    Repeatable,
    /// It subtracts what cannot be computed again.
    Unrepeatable,
}

impl InitLoraWeights {
    pub(crate) const fn base(self) -> Base {
        match self {
            Self::Default | Self::Random | Self::Gaussian | Self::Orthogonal => Base::Whole,
            Self::Foreign(Foreign::Eva | Foreign::Mica) => Base::Whole,
            Self::Pissa | Self::Olora => Base::Repeatable,
            Self::PissaIterated(_) | Self::Foreign(_) => Base::Unrepeatable,
        }
    }

    /// True if the layer subtracts its own start.
    pub(crate) const fn is_residual(self) -> bool {
        !matches!(self.base(), Base::Whole)
    }

    /// The word or the truth value in a file.
    pub(crate) fn written(self) -> serde_json::Value {
        match self {
            Self::Default => true.into(),
            Self::Random => false.into(),
            Self::Gaussian => "gaussian".into(),
            Self::Orthogonal => "orthogonal".into(),
            Self::Pissa => "pissa".into(),
            Self::PissaIterated(n) => format!("pissa_niter_{n}").into(),
            Self::Olora => "olora".into(),
            Self::Foreign(foreign) => {
                let word = FOREIGN.iter().find(|(_, known)| *known == foreign);
                word.map_or("", |(word, _)| word).into()
            }
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "gaussian" => Self::Gaussian,
            "orthogonal" => Self::Orthogonal,
            "pissa" => Self::Pissa,
            "olora" => Self::Olora,
            word => match word.strip_prefix("pissa_niter_") {
                Some(count) => Self::PissaIterated(count.parse().ok()?),
                None => Self::Foreign(FOREIGN.iter().find(|(known, _)| *known == word)?.1),
            },
        })
    }
}

impl Serialize for InitLoraWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.written().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for InitLoraWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bool(bool),
            Word(String),
        }
        let found = match Written::deserialize(deserializer) {
            Ok(Written::Bool(true)) => Some(Self::Default),
            Ok(Written::Bool(false)) => Some(Self::Random),
            Ok(Written::Word(word)) => Self::from_word(&word),
            Err(_) => None,
        };
        found.ok_or_else(|| D::Error::custom(format!("expected {EXPECTED}")))
    }
}

/// Where the factors of one layer begin.
pub(crate) struct Factors {
    /// A `[r, n_in]`.
    pub a: Init,
    /// B `[n_out, r]`.
    pub b: Init,
    /// A and B once more, if s B A is to be subtracted.
    pub subtracted: Option<(Tensor, Tensor)>,
}

impl InitLoraWeights {
    /// Factors of rank `rank` and scale `scale` over `base`; `key` is for what they draw beside [`Init`].
    pub(crate) fn factors(
        self,
        base: &FrozenLinear,
        rank: usize,
        scale: f64,
        key: Key,
    ) -> Result<Factors> {
        let plain = |a, b| {
            Ok(Factors {
                a,
                b,
                subtracted: None,
            })
        };
        let subtracted = |a: Tensor, b: Tensor| {
            Ok(Factors {
                a: Init::Value(a.clone()),
                b: Init::Value(b.clone()),
                subtracted: Some((a, b)),
            })
        };
        match self {
            Self::Default => plain(Init::KaimingUniform, Init::Zeros),
            Self::Random => plain(Init::KaimingUniform, Init::KaimingUniform),
            Self::Gaussian => {
                let std = 1.0 / rank as f64;
                plain(Init::Normal { std }, Init::Zeros)
            }
            Self::Orthogonal => {
                let (a, b) = orthogonal(base.dims(), rank, key)?;
                plain(Init::Value(a), Init::Value(b))
            }
            Self::Pissa => {
                let (a, b) = principal(&linalg::svd(&base.weight()?, rank)?, scale)?;
                subtracted(a, b)
            }
            Self::PissaIterated(iterations) => {
                let iterations = usize::from(iterations);
                let found = linalg::svd_randomised(&base.weight()?, rank, iterations, key)?;
                let (a, b) = principal(&found, scale)?;
                subtracted(a, b)
            }
            Self::Olora => {
                let (q, r) = linalg::qr(&base.weight()?)?;
                subtracted(
                    r.narrow(0, 0, rank)?.contiguous()?,
                    q.narrow(1, 0, rank)?.contiguous()?,
                )
            }
            Self::Foreign(_) => Err(Error::NotYet {
                key: "init_lora_weights".into(),
                value: self.written().to_string(),
                only: None,
            }),
        }
    }
}

/// A and B that share the singular values, which are divided by the scale so that s B A is the truncation itself.
fn principal(found: &Svd, scale: f64) -> Result<(Tensor, Tensor)> {
    if scale <= 0.0 {
        let what = format!(
            "\"pissa\" divides by the scale, which is {scale}; give a positive `lora_alpha`"
        );
        return Err(Error::Config { what });
    }
    let roots: Vec<f64> = found.values.iter().map(|v| (v / scale).sqrt()).collect();
    let roots = Tensor::from_vec(roots, found.values.len(), &Device::Cpu)?;
    let roots = roots.to_dtype(found.left.dtype())?;
    let a = found.right.broadcast_mul(&roots.unsqueeze(1)?)?;
    Ok((a, found.left.broadcast_mul(&roots)?))
}

/// A = (G Q')ᵀ / 10 and B = Hᵀ Q'' / 10 with G and H normal, where Q' and Q'' are the even and the odd rows of one
/// orthogonal matrix: B A = 0, and neither is.
fn orthogonal((n_out, n_in): (usize, usize), rank: usize, key: Key) -> Result<(Tensor, Tensor)> {
    if !rank.is_multiple_of(2) {
        let what =
            format!("`init_lora_weights = \"orthogonal\"` needs an even rank, and r is {rank}");
        return Err(Error::Config { what });
    }
    let mut stream = key.stream();
    let mut normal = |rows: usize, columns: usize| {
        let numbers: Vec<f64> = (0..rows * columns).map(|_| stream.normal()).collect();
        Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)
    };
    let (q, _) = linalg::qr(&normal(rank, rank)?)?;
    let half = |first: u32| -> Result<Tensor> {
        let rows: Vec<u32> = (first..rank as u32).step_by(2).collect();
        Ok(q.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
    };
    let a = normal(n_in, rank / 2)?.matmul(&half(0)?)?;
    let b = normal(n_out, rank / 2)?.matmul(&half(1)?)?;
    debug_assert_eq!(a.dtype(), DType::F64);
    Ok(((a.t()?.contiguous()? / 10.0)?, (b / 10.0)?))
}
