use super::*;
use candle_core::{Device, Var};
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{backward, leaf, sum_all};

fn random(what: &str, shape: &[usize], dtype: DType) -> Result<Var> {
    let mut stream = Key::new(3, Purpose::Test).site(what).stream();
    let count = shape.iter().product();
    let numbers: Vec<f64> = (0..count).map(|_| stream.normal()).collect();
    leaf(&Tensor::from_vec(numbers, shape, &Device::Cpu)?.to_dtype(dtype)?)
}

fn gap(one: &Tensor, other: &Tensor) -> Result<f64> {
    assert_eq!(one.dims(), other.dims());
    let gap = (one - other)?.abs()?.flatten_all()?.max(0)?;
    Ok(gap.to_dtype(DType::F64)?.to_scalar()?)
}

/// The gradients of the sum of outputs times fixed random weights.
fn gradients(outputs: &[Tensor], leaves: &[&Var]) -> Result<Vec<Tensor>> {
    let mut loss = Tensor::zeros((), outputs[0].dtype(), &Device::Cpu)?;
    for (at, output) in outputs.iter().enumerate() {
        let weights = random(&format!("weight {at}"), output.dims(), output.dtype())?;
        loss = (loss + sum_all(&(output * weights.detach())?)?)?;
    }
    let (_, grads) = backward(&loss, &[], leaves)?;
    let grads = grads.into_iter().map(|grad| grad.expect("takes part"));
    Ok(grads.collect())
}

#[test]
fn what_is_routed_equals_its_twin() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 3e-6), (DType::F64, 1e-14)] {
        let p = random("p", &[2, 5, 3 + 4], dtype)?;
        let scale_a = random("OA", &[4, 3], dtype)?;
        let (c, g) = route(p.as_tensor(), scale_a.as_tensor(), -1.75)?;
        let (twin_c, twin_g) = route_composed(p.as_tensor(), scale_a.as_tensor(), -1.75)?;
        assert_eq!((c.dims(), g.dims()), (&[2, 5, 12][..], &[2, 5, 4][..]));
        assert!(gap(&c, &twin_c)? < tolerance && gap(&g, &twin_g)? < tolerance);
        // With a gradient of both results, and of either alone.
        for (ours, twins) in [
            (
                vec![c.clone(), g.clone()],
                vec![twin_c.clone(), twin_g.clone()],
            ),
            (vec![c], vec![twin_c]),
            (vec![g], vec![twin_g]),
        ] {
            let leaves = if ours.len() == 1 && ours[0].dim(2)? == 4 {
                vec![&p]
            } else {
                vec![&p, &scale_a]
            };
            let (got, expected) = (gradients(&ours, &leaves)?, gradients(&twins, &leaves)?);
            for (got, expected) in got.iter().zip(&expected) {
                assert!(gap(got, expected)? < 10.0 * tolerance, "{dtype:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn copies_side_by_side_equal_their_twin() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 3e-6), (DType::F64, 1e-14)] {
        let (b, scale_b) = (random("B", &[7, 3], dtype)?, random("OB", &[4, 7], dtype)?);
        let wide = side_by_side(b.as_tensor(), scale_b.as_tensor())?;
        let twin = side_by_side_composed(b.as_tensor(), scale_b.as_tensor())?;
        assert!(gap(&wide, &twin)? < tolerance);
        let leaves = [&b, &scale_b];
        let (got, expected) = (gradients(&[wide], &leaves)?, gradients(&[twin], &leaves)?);
        for (got, expected) in got.iter().zip(&expected) {
            assert!(gap(got, expected)? < 10.0 * tolerance, "{dtype:?}");
        }
    }
    Ok(())
}

#[test]
fn other_dtypes_are_refused() -> Result<()> {
    let (p, scale_a) = (
        random("p", &[2, 5], DType::BF16)?,
        random("OA", &[2, 3], DType::BF16)?,
    );
    let error = route(p.as_tensor(), scale_a.as_tensor(), 2.0).map(drop);
    let expected = "mor_route: dtype bf16 is not supported, expected f32 or f64";
    assert_eq!(
        error.map_err(|error| error.to_string()),
        Err(expected.into())
    );
    Ok(())
}
