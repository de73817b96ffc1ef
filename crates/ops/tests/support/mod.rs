//! What every test of a differentiable function needs: random leaves in several layouts, its composed twin as
//! an oracle, and central differences.

use candle_core::{DType, Device, Tensor, Var};
use lowrank_ops as ops;
use ops::rng::{Key, Purpose, Stream};
use std::iter::repeat_with;

/// A function under test, of as many tensors as the test has shapes.
pub type Function<'a> = &'a dyn Fn(&[Tensor]) -> ops::Result<Tensor>;

/// How a function's argument lies in memory.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    Contiguous,
    /// The last two axes lie the other way round (a vector lies with gaps).
    Transposed,
    /// The middle of something longer.
    Narrowed,
}

const FORMS: [Form; 3] = [Form::Contiguous, Form::Transposed, Form::Narrowed];

impl Form {
    /// The shape of a leaf, so that its view has the shape `dims`.
    fn leaf_dims(self, dims: &[usize]) -> Vec<usize> {
        let mut dims = dims.to_vec();
        let rank = dims.len();
        match self {
            Self::Contiguous => {}
            Self::Transposed if rank > 1 => dims.swap(rank - 2, rank - 1),
            Self::Transposed => dims.push(2),
            Self::Narrowed => dims[rank - 1] += 3,
        }
        dims
    }

    /// The argument that a leaf stands for.
    fn view(self, leaf: &Tensor, dims: &[usize]) -> Tensor {
        let rank = dims.len();
        match self {
            Self::Contiguous => leaf.clone(),
            Self::Transposed if rank > 1 => leaf.transpose(rank - 2, rank - 1).unwrap(),
            Self::Transposed => leaf.narrow(1, 1, 1).unwrap().squeeze(1).unwrap(),
            Self::Narrowed => leaf.narrow(rank - 1, 2, dims[rank - 1]).unwrap(),
        }
    }
}

pub fn stream(site: &str) -> Stream {
    Key::new(11, Purpose::Test).site(site).stream()
}

/// Standard normal numbers.
pub fn normal(stream: &mut Stream, dims: &[usize], dtype: DType) -> Tensor {
    let count = dims.iter().product();
    let numbers: Vec<f64> = repeat_with(|| stream.normal()).take(count).collect();
    let tensor = Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.flatten_all().unwrap();
    flat.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Asserts equal shapes, and numbers that differ by at most `tolerance` times the largest of the right side (or 1).
#[track_caller]
pub fn assert_close(left: &Tensor, right: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(left.dims(), right.dims(), "{what}: shapes");
    let (left, right) = (numbers(left), numbers(right));
    let size = right.iter().fold(1f64, |size, x| size.max(x.abs()));
    for (at, (left, right)) in left.iter().zip(&right).enumerate() {
        let off = (left - right).abs();
        assert!(
            off <= tolerance * size,
            "{what}: {left} and {right} at {at}"
        );
    }
}

/// Value and gradients (of the leaves) of the sum of `function`'s result times fixed random weights.
fn differentiate(function: Function, views: &[Tensor], leaves: &[Var]) -> (Tensor, Vec<Tensor>) {
    let y = function(views).unwrap();
    let weights = normal(&mut stream("weights"), y.dims(), y.dtype());
    let loss = (&y * weights).unwrap().sum_all().unwrap();
    let leaves: Vec<&Var> = leaves.iter().collect();
    let (_, grads) = ops::backward(&loss, &[], &leaves).unwrap();
    let grads = grads
        .into_iter()
        .map(|grad| grad.expect("every leaf takes part"));
    (y, grads.collect())
}

/// All that is asked of a fused function: it equals its composed twin, values and gradients, in both dtypes and
/// every layout; it matches differences; it gives gradients to tracked arguments alone, which are the same
/// whichever others are tracked; it keeps no graph without any; it refuses other dtypes.
#[track_caller]
pub fn check(name: &'static str, dims: &[&[usize]], fused: Function, twin: Function) {
    for form in FORMS {
        for (dtype, tolerance) in [(DType::F32, 3e-6), (DType::F64, 1e-14)] {
            let what = format!("{name} {dtype:?} {form:?}");
            let random = &mut stream(&what);
            let leaves: Vec<Var> = (dims.iter())
                .map(|dims| ops::leaf(&normal(random, &form.leaf_dims(dims), dtype)).unwrap())
                .collect();
            let views: Vec<Tensor> = leaves
                .iter()
                .zip(dims)
                .map(|(leaf, dims)| form.view(leaf, dims))
                .collect();
            let (y, grads) = differentiate(fused, &views, &leaves);
            let (twin_y, twin_grads) = differentiate(twin, &views, &leaves);
            assert_eq!(y.dtype(), dtype);
            assert_close(&y, &twin_y, tolerance, &what);
            for (at, (grad, twin_grad)) in grads.iter().zip(&twin_grads).enumerate() {
                let what = format!("{what}, gradient {at}");
                assert_close(grad, twin_grad, 4.0 * tolerance, &what);
            }
            check_tracking(fused, &views, &grads, dims, form, &leaves);
        }
    }
    check_differences(name, dims, fused);
    check_dtypes(name, dims, fused);
}

fn check_tracking(
    fused: Function,
    views: &[Tensor],
    all: &[Tensor],
    dims: &[&[usize]],
    form: Form,
    leaves: &[Var],
) {
    let plain: Vec<Tensor> = views.iter().map(Tensor::detach).collect();
    let y = fused(&plain).unwrap();
    assert!(!y.track_op(), "a graph of nothing");
    let weights = normal(&mut stream("weights"), y.dims(), y.dtype());
    for tracked in 0..views.len() {
        let mut arguments = plain.clone();
        arguments[tracked] = form.view(&leaves[tracked], dims[tracked]);
        let y = fused(&arguments).unwrap();
        let loss = (y * &weights).unwrap().sum_all().unwrap();
        let leaves: Vec<&Var> = leaves.iter().collect();
        let (_, grads) = ops::backward(&loss, &[], &leaves).unwrap();
        for (at, grad) in grads.iter().enumerate() {
            if at == tracked {
                let grad = numbers(grad.as_ref().unwrap());
                assert_eq!(grad, numbers(&all[at]), "gradient {at} alone");
            } else {
                assert!(grad.is_none(), "{at} is not tracked");
            }
        }
    }
}

/// Central differences in f64, for every number of every argument.
fn check_differences(name: &str, dims: &[&[usize]], fused: Function) {
    let random = &mut stream(name);
    let leaves: Vec<Var> = dims
        .iter()
        .map(|dims| ops::leaf(&normal(random, dims, DType::F64)).unwrap())
        .collect();
    let arguments: Vec<Tensor> = leaves.iter().map(|leaf| leaf.as_tensor().clone()).collect();
    let (y, grads) = differentiate(fused, &arguments, &leaves);
    let weights = numbers(&normal(&mut stream("weights"), y.dims(), DType::F64));
    let loss = |arguments: &[Tensor]| -> f64 {
        let y = numbers(&fused(arguments).unwrap());
        y.iter().zip(&weights).map(|(y, weight)| y * weight).sum()
    };
    let plain: Vec<Tensor> = arguments.iter().map(Tensor::detach).collect();
    for (at, grad) in grads.iter().enumerate() {
        let grad = numbers(grad);
        let size = grad.iter().fold(1f64, |size, x| size.max(x.abs()));
        let start = numbers(&plain[at]);
        for (place, grad) in grad.iter().enumerate() {
            let step = 1e-5;
            let moved = |by: f64| {
                let mut numbers = start.clone();
                numbers[place] += by;
                let mut arguments = plain.clone();
                arguments[at] = Tensor::from_vec(numbers, dims[at], &Device::Cpu).unwrap();
                loss(&arguments)
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            assert!(
                (slope - grad).abs() <= 1e-6 * size,
                "{name}, argument {at}, place {place}: gradient {grad}, difference {slope}"
            );
        }
    }
}

fn check_dtypes(name: &str, dims: &[&[usize]], fused: Function) {
    let random = &mut stream(name);
    let halves: Vec<Tensor> = dims
        .iter()
        .map(|dims| normal(random, dims, DType::F16))
        .collect();
    let error = fused(&halves).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{name}: dtype f16 is not supported, expected f32 or f64")
    );
    for at in 1..dims.len() {
        let mut mixed: Vec<Tensor> = dims
            .iter()
            .map(|dims| normal(random, dims, DType::F32))
            .collect();
        mixed[at] = mixed[at].to_dtype(DType::F64).unwrap();
        let error = fused(&mixed).unwrap_err().to_string();
        let end = " has dtype f64, the other argument has f32";
        assert!(error.ends_with(end), "{error}");
    }
}
