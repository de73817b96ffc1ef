//! The record of operations: several outputs, candle's operations in between, and gradients that meet.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use candle_core::{DType, Shape, Tensor};
use lowrank_ops as ops;
use ops::tape::{self, Backward, Inputs};
use ops::{Error, Float, data};
use std::sync::{Arc, Mutex};
use support::{assert_close, check, normal, numbers, stream};

/// Which outputs' gradients arrived, one entry a call of the backward.
type Seen = Arc<Mutex<Vec<[bool; 2]>>>;

/// (x y, x + 2 y), number by number.
struct Mixed(Seen);

impl<T: Float> Backward<T> for Mixed {
    fn backward(
        &self,
        grads: &[Option<Arc<Vec<T>>>],
        inputs: &mut Inputs<'_, T>,
    ) -> ops::Result<()> {
        let seen = [0, 1].map(|i| grads[i].is_some());
        self.0.lock().unwrap().push(seen);
        let (x, y) = (inputs.data(0)?, inputs.data(1)?);
        if let Some(g) = &grads[1] {
            // The sum's gradient is handed on as it is, and the products' are added to it where it now lies.
            if inputs.wanted(0) {
                inputs.add(0, Arc::clone(g));
            }
            if inputs.wanted(1) {
                let twice = g.iter().map(|g| *g + *g).collect();
                inputs.add(1, Arc::new(twice));
            }
        }
        if let Some(g) = &grads[0] {
            for (i, other) in [(0, &y), (1, &x)] {
                if inputs.wanted(i) {
                    inputs.accumulate(i, |into, begun| {
                        for (into, (g, other)) in into.iter_mut().zip(g.iter().zip(other.iter())) {
                            *into = if begun { *into } else { T::ZERO } + *g * *other;
                        }
                        Ok(())
                    })?;
                }
            }
        }
        Ok(())
    }
}

fn mixed_of<T: Float>(x: &Tensor, y: &Tensor, seen: Seen) -> ops::Result<[Tensor; 2]> {
    let (x, y) = (x.contiguous()?, y.contiguous()?);
    let (xs, ys) = (data::<T>(&x)?, data::<T>(&y)?);
    let pairs = || xs.iter().zip(ys.iter());
    let product = pairs().map(|(x, y)| *x * *y).collect();
    let sum = pairs().map(|(x, y)| *x + *y + *y).collect();
    let outputs = [(product, x.shape().clone()), (sum, x.shape().clone())];
    tape::record::<T, 2>("mixed", &[&x, &y], outputs, Mixed(seen))
}

fn mixed_seen(x: &Tensor, y: &Tensor, seen: &Seen) -> ops::Result<[Tensor; 2]> {
    if x.dtype() != y.dtype() {
        let (got, expected) = (y.dtype().as_str(), x.dtype().as_str());
        return Err(Error::Argument {
            op: "mixed",
            what: format!("y has dtype {got}, the other argument has {expected}"),
        });
    }
    match x.dtype() {
        DType::F32 => mixed_of::<f32>(x, y, Arc::clone(seen)),
        DType::F64 => mixed_of::<f64>(x, y, Arc::clone(seen)),
        other => Err(Error::DType {
            op: "mixed",
            dtype: other.as_str(),
        }),
    }
}

fn mixed(x: &Tensor, y: &Tensor) -> ops::Result<[Tensor; 2]> {
    mixed_seen(x, y, &Seen::default())
}

fn composed_mixed(x: &Tensor, y: &Tensor) -> ops::Result<[Tensor; 2]> {
    Ok([(x * y)?, (x + (y * 2.0)?)?])
}

type Operation = fn(&Tensor, &Tensor) -> ops::Result<[Tensor; 2]>;

/// `function` of two tensors of the same shape, made of the operation given to it, recorded and composed.
#[track_caller]
fn check_mixed(dims: &[usize], function: impl Fn(Operation, &[Tensor]) -> ops::Result<Tensor>) {
    check("mixed", &[dims, dims], &|x| function(mixed, x), &|x| {
        function(composed_mixed, x)
    });
}

#[test]
fn either_output_or_both_may_be_used() {
    check_mixed(&[3, 5], |mixed, x| {
        Ok(mixed(&x[0], &x[1])?.into_iter().next().unwrap())
    });
    check_mixed(&[3, 5], |mixed, x| {
        Ok(mixed(&x[0], &x[1])?.into_iter().nth(1).unwrap())
    });
    check_mixed(&[2, 3, 4], |mixed, x| {
        let [product, sum] = mixed(&x[0], &x[1])?;
        ops::swiglu(&sum, &product)
    });
}

#[test]
fn a_backward_is_called_once_if_any_output_counts_and_never_if_none_does() {
    let random = &mut stream("called");
    for dtype in [DType::F32, DType::F64] {
        let [x, y] = [0, 1].map(|_| ops::leaf(&normal(random, &[2, 3], dtype)).unwrap());
        let (x_numbers, y_numbers) = (numbers(&x), numbers(&y));
        for (used, expected) in [
            ([true, false], vec![[true, false]]),
            ([false, true], vec![[false, true]]),
            ([true, true], vec![[true, true]]),
            ([false, false], vec![]),
        ] {
            let seen = Seen::default();
            let outputs = mixed_seen(&x, &y, &seen).unwrap();
            // The unused outputs live on, and x is reached past the operation.
            let mut loss = ops::sum_all(&x).unwrap();
            for (output, used) in outputs.iter().zip(used) {
                if used {
                    loss = (loss + ops::sum_all(output).unwrap()).unwrap();
                }
            }
            let (_, grads) = ops::backward(&loss, &[], &[&x, &y]).unwrap();
            assert_eq!(*seen.lock().unwrap(), expected);
            let factor = |used: bool| if used { 1.0 } else { 0.0 };
            let x_grad = y_numbers
                .iter()
                .map(|y| 1.0 + factor(used[0]) * y + factor(used[1]));
            let got = numbers(grads[0].as_ref().unwrap());
            for (got, expected) in got.iter().zip(x_grad) {
                assert!((got - expected).abs() < 1e-6, "{got} {expected}");
            }
            let Some(grad) = &grads[1] else {
                assert_eq!(used, [false, false]);
                continue;
            };
            let y_grad = x_numbers
                .iter()
                .map(|x| factor(used[0]) * x + 2.0 * factor(used[1]));
            for (got, expected) in numbers(grad).iter().zip(y_grad) {
                assert!((got - expected).abs() < 1e-6, "{got} {expected}");
            }
        }
    }
}

#[test]
fn a_backward_is_called_once_whoever_shares_its_outputs() {
    let random = &mut stream("shared outputs");
    let [x, y] = [0, 1].map(|_| ops::leaf(&normal(random, &[4, 3], DType::F64)).unwrap());
    let seen = Seen::default();
    let [product, sum] = mixed_seen(&x, &y, &seen).unwrap();
    // Four consumers, recorded and candle's, of which some are reached early and some late.
    let early = ops::add(&product, &sum).unwrap();
    let late = mixed(&early, &product).unwrap();
    let loss = ((&late[0] * &late[1]).unwrap() * &sum).unwrap();
    ops::backward(&ops::sum_all(&loss).unwrap(), &[], &[&x, &y]).unwrap();
    assert_eq!(*seen.lock().unwrap(), [[true, true]]);
}

#[test]
fn candles_operations_may_stand_anywhere() {
    // Before, between and after; a region with two recorded tensors under it, and one that is used twice.
    check_mixed(&[3, 4], |mixed, x| {
        let a = (x[0].tanh()? * 0.7)?;
        let [product, sum] = mixed(&a, &x[1])?;
        let region = (product.sin()? + (&sum * &x[0])?)?;
        let [again, other] = mixed(&region, &product.cos()?)?;
        Ok((again.tanh()? * (other + &region)?)?)
    });
    // One region inside of another: `inner` goes into an operation itself and by way of `outer`.
    check_mixed(&[2, 5], |mixed, x| {
        let inner = x[0].sin()?;
        let outer = (&inner * 3.0)?.tanh()?;
        let [product, sum] = mixed(&inner, &outer)?;
        let [product, _] = mixed(&product, &x[1])?;
        let [product, _] = mixed(&(&sum * 0.5)?, &product)?;
        Ok(product)
    });
    // A region over the outputs of one operation only.
    check_mixed(&[7], |mixed, x| {
        let [product, sum] = mixed(&x[0], &x[1])?;
        Ok((product * sum)?)
    });
}

#[test]
fn views_pass_gradients_through() {
    // Of a variable, of an output, and one after the other.
    check_mixed(&[3, 4], |mixed, x| {
        let [a, b] = [x[0].reshape((2, 6))?, x[1].reshape((2, 6))?];
        let [product, sum] = mixed(&a, &b)?;
        let [product, sum] = [product.reshape((4, 3))?, sum.reshape((4, 3))?];
        let [product, _] = mixed(&product, &sum.unsqueeze(0)?.flatten_all()?.reshape((4, 3))?)?;
        Ok(product)
    });
    // Views of other numbers, or of the same in another order, are regions like any.
    check_mixed(&[4, 3], |mixed, x| {
        let [product, sum] = mixed(&x[0].t()?, &x[1].t()?)?;
        let [product, _] = mixed(&product.narrow(0, 1, 2)?, &sum.narrow(0, 0, 2)?)?;
        Ok(product.t()?.contiguous()?)
    });
    // Halves that tile the whole meet in its gradient.
    check_mixed(&[4, 3], |mixed, x| {
        let [product, sum] = mixed(&x[0], &x[1])?;
        let half = |x: &Tensor, from| x.narrow(0, from, 2);
        let [first, _] = mixed(&half(&product, 0)?, &half(&sum, 2)?)?;
        let [_, second] = mixed(&half(&product, 2)?, &half(&sum, 0)?)?;
        Ok(Tensor::cat(&[first, second], 1)?)
    });
}

#[test]
fn gradients_arrive_at_leaves_and_outputs_on_several_ways() {
    check_mixed(&[2, 3], |mixed, x| {
        let [product, sum] = mixed(&x[0], &x[1])?;
        // The leaf and the output together in one operation, and each in further ones.
        let [with_leaf, _] = mixed(&product, &x[0])?;
        let [_, with_output] = mixed(&x[1], &sum)?;
        let [twice, same] = mixed(&product, &product)?;
        let all = ops::add(&ops::add(&with_leaf, &with_output)?, &twice)?;
        Ok(((all * &x[0])? + same)?)
    });
}

/// `add` gives one buffer to both its inputs. What one of them adds to it later must not show in the other's.
#[test]
fn a_buffer_that_two_inputs_share_is_copied_before_it_changes() {
    for dtype in [DType::F32, DType::F64] {
        let random = &mut stream("copies");
        let [x, y] = [0, 1].map(|_| ops::leaf(&normal(random, &[3, 2], dtype)).unwrap());
        let upstream = normal(random, &[3, 2], dtype);
        let (x_numbers, g) = (numbers(&x), numbers(&upstream));
        for square_first in [false, true] {
            // Steps run backwards in the order in which the inputs of the last one are reached.
            let sum = ops::add(&x, &y).unwrap();
            let [square, _] = mixed(&x, &x).unwrap();
            let loss = if square_first {
                ops::add(&square, &sum).unwrap()
            } else {
                ops::add(&sum, &square).unwrap()
            };
            let root = ops::Seed::apply(&loss, &upstream).unwrap();
            let (_, grads) = ops::backward(&root, &[], &[&x, &y]).unwrap();
            let [x_grad, y_grad] = [0, 1].map(|i| numbers(grads[i].as_ref().unwrap()));
            assert_eq!(y_grad, g);
            for (at, got) in x_grad.iter().enumerate() {
                let expected = g[at] * (1.0 + 2.0 * x_numbers[at]);
                assert!((got - expected).abs() < 1e-5, "{got} {expected}");
            }
            // A second time: the first has changed nothing, the seed's own numbers among it.
            let (_, again) = ops::backward(&root, &[], &[&x, &y]).unwrap();
            assert_eq!(numbers(again[0].as_ref().unwrap()), x_grad);
            assert_eq!(numbers(again[1].as_ref().unwrap()), y_grad);
            assert_eq!(numbers(&upstream), g);
        }
    }
}

/// Both results of one backward are the caller's own: changing one leaves the other.
#[test]
fn gradients_that_were_one_buffer_are_given_out_apart() {
    let random = &mut stream("apart");
    let [x, y] = [0, 1].map(|_| ops::leaf(&normal(random, &[3, 2], DType::F64)).unwrap());
    let upstream = normal(random, &[3, 2], DType::F64);
    let root = ops::Seed::apply(&ops::add(&x, &y).unwrap(), &upstream).unwrap();
    let (_, grads) = ops::backward(&root, &[], &[&x, &y]).unwrap();
    let [x_grad, y_grad] = [0, 1].map(|i| grads[i].clone().unwrap());
    assert_eq!(numbers(&x_grad), numbers(&upstream));
    let addresses = [&x_grad, &y_grad].map(|grad| data::<f64>(grad).unwrap().as_ptr());
    assert_ne!(addresses[0], addresses[1]);
}

#[test]
fn a_region_may_change_the_dtype() {
    let random = &mut stream("dtypes");
    let [x, y] = [0, 1].map(|_| ops::leaf(&normal(random, &[3, 4], DType::F32)).unwrap());
    let weights = normal(random, &[3, 4], DType::F64);
    let [recorded, composed] = [mixed as Operation, composed_mixed].map(|mixed| {
        let [product, sum] = mixed(&x, &y).unwrap();
        let wide = product.to_dtype(DType::F64).unwrap();
        let [wide, _] = mixed(&wide, &sum.to_dtype(DType::F64).unwrap()).unwrap();
        let loss = ops::sum_all(&(wide * &weights).unwrap()).unwrap();
        ops::backward(&loss, &[], &[&x, &y]).unwrap().1
    });
    for (recorded, composed) in recorded.iter().zip(&composed) {
        let (recorded, composed) = (recorded.as_ref().unwrap(), composed.as_ref().unwrap());
        assert_eq!(recorded.dtype(), DType::F32);
        assert_close(recorded, composed, 3e-6, "two dtypes");
    }
}

#[test]
fn what_takes_part_in_no_graph_keeps_nothing() {
    let random = &mut stream("nothing");
    let [x, y] = [0, 1].map(|_| normal(random, &[2, 3], DType::F32));
    let seen = Seen::default();
    let outputs = mixed_seen(&x, &y, &seen).unwrap();
    assert!(outputs.iter().all(|output| !output.track_op()));
    assert_eq!(Arc::strong_count(&seen), 1);
    // With a leaf, any output keeps it and the last one lets it go.
    let x = ops::leaf(&x).unwrap();
    let [product, sum] = mixed_seen(&x, &y, &seen).unwrap();
    assert_eq!(Arc::strong_count(&seen), 2);
    drop(product);
    assert_eq!(Arc::strong_count(&seen), 2);
    let after = sum.reshape((3, 2)).unwrap();
    drop(sum);
    assert_eq!(Arc::strong_count(&seen), 2);
    drop(after);
    assert_eq!(Arc::strong_count(&seen), 1);
}

#[test]
fn an_output_of_the_wrong_size_is_refused() {
    let x = ops::leaf(&normal(&mut stream("size"), &[2, 3], DType::F32)).unwrap();
    let outputs = [
        (vec![0f32; 6], Shape::from((2, 3))),
        (vec![0f32; 5], Shape::from((2, 3))),
    ];
    let error = tape::record::<f32, 2>("mixed", &[&x], outputs, Mixed(Seen::default()));
    assert_eq!(
        error.unwrap_err().to_string(),
        "mixed: an output has shape [5], expected the numbers of [2, 3]"
    );
}
