//! Our own record of operations: any number of inputs and outputs, and gradients that are summed in place.
//!
//! candle's graph has operations of at most three inputs and one output, and its backward fills a tensor with zeros
//! and adds to it wherever a gradient arrives. An operation that is recorded here hands its gradients on directly. To
//! candle its outputs are functions of a hidden scalar, so candle's own operations can be mixed in anywhere: a region of
//! them between two recorded operations is differentiated by candle, and its graph ends where ours begins.

use crate::float::{Buffer, unwritten};
use crate::{Data, Error, Float, Result, composed, data};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Storage, Tensor, TensorId, Var};
use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// The backward of a recorded operation.
pub trait Backward<T: Float>: Send + Sync {
    /// Adds to the inputs' gradients, given one of each output (`None` where the loss does not depend on it).
    ///
    /// # Errors
    /// If an input cannot be read.
    fn backward(&self, grads: &[Option<Arc<Vec<T>>>], inputs: &mut Inputs<'_, T>) -> Result<()>;
}

/// The inputs of an operation and the sums of their gradients.
pub struct Inputs<'a, T> {
    kept: &'a [Kept],
    sums: &'a mut Sums,
    dtype: PhantomData<T>,
}

impl<'a, T: Float> Inputs<'a, T> {
    /// How many inputs there are.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "an operation without inputs is recorded nowhere"
    )]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// The input numbered `i`, contiguous.
    ///
    /// # Panics
    /// If the operation said that it does not read its inputs.
    #[must_use]
    pub fn tensor(&self, i: usize) -> &'a Tensor {
        match &self.kept[i] {
            Kept::Whole(tensor) => tensor,
            Kept::Place(_) => unreachable!("an input of `record_unread` is not read"),
        }
    }

    /// The numbers of the input numbered `i`.
    ///
    /// # Errors
    /// If it is not contiguous, or of another dtype.
    pub fn data(&self, i: usize) -> Result<Data<'a, T>> {
        data(self.tensor(i))
    }

    /// True if the gradient of this input is wanted.
    #[must_use]
    pub fn wanted(&self, i: usize) -> bool {
        match &self.kept[i] {
            Kept::Whole(tensor) => tensor.track_op(),
            Kept::Place(_) => true,
        }
    }

    /// Lets `add` change the sum of an input's gradients in place. The second argument is false if nothing has been added
    /// yet: every number must then be overwritten, and none be read.
    ///
    /// # Errors
    /// Those of `add`.
    pub fn accumulate(
        &mut self,
        i: usize,
        add: impl FnOnce(&mut [T], bool) -> Result<()>,
    ) -> Result<()> {
        let tensor = self.tensor(i);
        let sum = self.sums.take::<T>(tensor.id());
        let begun = sum.is_some();
        let mut sum = sum.unwrap_or_else(|| Arc::new(unwritten(tensor.elem_count())));
        add(Arc::make_mut(&mut sum).as_mut_slice(), begun)?;
        self.sums.put(tensor.id(), sum);
        Ok(())
    }

    /// Adds a gradient of the input's size; the first one is kept without a copy.
    pub fn add(&mut self, i: usize, grad: Arc<Vec<T>>) {
        let id = match &self.kept[i] {
            Kept::Whole(tensor) => Some(tensor.id()),
            Kept::Place(output) => output.id.get().copied(),
        };
        if let Some(id) = id {
            self.sums.add(id, grad);
        }
    }
}

/// Records an operation: `outputs` are its results, already computed, and `backward` what to do with their gradients.
/// If no input is part of a graph the outputs are plain tensors and `backward` is dropped. Inputs are contiguous.
///
/// # Errors
/// If an output's numbers do not fit its shape.
pub fn record<T: Float, const N: usize>(
    name: &'static str,
    inputs: &[&Tensor],
    outputs: [(Vec<T>, Shape); N],
    backward: impl Backward<T> + 'static,
) -> Result<[Tensor; N]> {
    let keep = |tensor: &Tensor| Kept::Whole(tensor.clone());
    record_kept(name, inputs, outputs, backward, keep)
}

/// As [`record`], for an operation whose backward reads nothing of its inputs and hands gradients on by [`Inputs::add`] alone:
/// what recorded operations made is not kept alive for it.
///
/// # Errors
/// As [`record`].
pub fn record_unread<T: Float, const N: usize>(
    name: &'static str,
    inputs: &[&Tensor],
    outputs: [(Vec<T>, Shape); N],
    backward: impl Backward<T> + 'static,
) -> Result<[Tensor; N]> {
    let keep = |tensor: &Tensor| match find(tensor) {
        Some(output) => Kept::Place(output),
        None => Kept::Whole(tensor.clone()),
    };
    record_kept(name, inputs, outputs, backward, keep)
}

fn record_kept<T: Float, const N: usize>(
    name: &'static str,
    inputs: &[&Tensor],
    outputs: [(Vec<T>, Shape); N],
    backward: impl Backward<T> + 'static,
    keep: impl Fn(&Tensor) -> Kept,
) -> Result<[Tensor; N]> {
    for (numbers, shape) in &outputs {
        if numbers.len() != shape.elem_count() {
            return Err(Error::Shape {
                op: name,
                what: "an output",
                got: vec![numbers.len()],
                expected: format!("the numbers of {:?}", shape.dims()),
            });
        }
    }
    let mut tensors = Vec::with_capacity(N);
    if inputs.iter().any(|input| input.track_op()) {
        let node = Arc::new(Node {
            inputs: inputs.iter().map(|&input| keep(input)).collect(),
            backward: Box::new(Typed(backward, PhantomData)),
            outputs: OnceLock::new(),
        });
        for (numbers, shape) in outputs {
            tensors.push(Output::tensor(name, &node, T::storage(numbers), shape)?);
        }
        node.outputs
            .get_or_init(|| tensors.iter().map(Tensor::id).collect());
    } else {
        for (numbers, shape) in outputs {
            tensors.push(Tensor::from_vec(numbers, shape, &Device::Cpu)?);
        }
    }
    Ok(tensors
        .try_into()
        .expect("one tensor for each of N outputs"))
}

/// What a node keeps of an input.
enum Kept {
    /// All of it.
    Whole(Tensor),
    /// Where its gradient goes.
    Place(Arc<Output>),
}

struct Node {
    inputs: Vec<Kept>,
    backward: Box<dyn Erased>,
    outputs: OnceLock<Vec<TensorId>>,
}

/// [`Backward`] of either dtype.
trait Erased: Send + Sync {
    fn backward(&self, node: &Node, sums: &mut Sums) -> Result<()>;
}

struct Typed<B, T>(B, PhantomData<T>);

impl<T: Float, B: Backward<T>> Erased for Typed<B, T> {
    fn backward(&self, node: &Node, sums: &mut Sums) -> Result<()> {
        let outputs = node.outputs.get().expect("set when recorded");
        let grads: Vec<_> = outputs.iter().map(|id| sums.take::<T>(*id)).collect();
        if grads.iter().all(Option::is_none) {
            return Ok(());
        }
        let mut inputs = Inputs {
            kept: &node.inputs,
            sums,
            dtype: PhantomData,
        };
        self.0.backward(&grads, &mut inputs)
    }
}

/// What candle holds of an output: the operation that made it from the hidden scalar.
struct Output {
    name: &'static str,
    node: Arc<Node>,
    /// Until candle takes it.
    result: Mutex<Option<(CpuStorage, Shape)>>,
    id: OnceLock<TensorId>,
    /// What candle's backward of a region above left here.
    arrived: Mutex<Option<Tensor>>,
}

struct Handle(Arc<Output>);

/// The recorded tensors that are alive. An entry goes when its tensor does.
fn outputs() -> MutexGuard<'static, HashMap<TensorId, Weak<Output>>> {
    static OUTPUTS: OnceLock<Mutex<HashMap<TensorId, Weak<Output>>>> = OnceLock::new();
    locked(OUTPUTS.get_or_init(Mutex::default))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(tensor: &Tensor) -> Option<Arc<Output>> {
    outputs().get(&tensor.id())?.upgrade()
}

/// The scalar that candle believes recorded outputs to come from.
fn source() -> Result<Tensor> {
    static SOURCE: OnceLock<Var> = OnceLock::new();
    if SOURCE.get().is_none() {
        let scalar = Var::from_vec(vec![0f32], (), &Device::Cpu)?;
        return Ok(SOURCE.get_or_init(|| scalar).as_tensor().clone());
    }
    Ok(SOURCE.get().expect("just seen").as_tensor().clone())
}

impl Output {
    fn tensor(
        name: &'static str,
        node: &Arc<Node>,
        storage: CpuStorage,
        shape: Shape,
    ) -> Result<Tensor> {
        let output = Arc::new(Self {
            name,
            node: Arc::clone(node),
            result: Mutex::new(Some((storage, shape))),
            id: OnceLock::new(),
            arrived: Mutex::new(None),
        });
        let tensor = source()?.apply_op1(Handle(Arc::clone(&output)))?;
        output.id.get_or_init(|| tensor.id());
        outputs().insert(tensor.id(), Arc::downgrade(&output));
        Ok(tensor)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(id) = self.id.get() {
            outputs().remove(id);
        }
    }
}

impl CustomOp1 for Handle {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        match locked(&self.0.result).take() {
            Some(result) => Ok(result),
            None => candle_core::bail!("{}: a recorded result is handed out once", self.0.name),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        *locked(&self.0.arrived) = Some(grad.contiguous()?);
        Ok(None)
    }
}

/// Gradients on their way down, by the tensor that they belong to.
#[derive(Default)]
struct Sums(HashMap<TensorId, Buffer>);

impl Sums {
    fn take<T: Float>(&mut self, id: TensorId) -> Option<Arc<Vec<T>>> {
        self.0.remove(&id).and_then(T::from_buffer)
    }

    fn put<T: Float>(&mut self, id: TensorId, grad: Arc<Vec<T>>) {
        self.0.insert(id, T::into_buffer(grad));
    }

    fn add<T: Float>(&mut self, id: TensorId, grad: Arc<Vec<T>>) {
        let sum = match self.take::<T>(id) {
            None => grad,
            Some(mut sum) => {
                let numbers = Arc::make_mut(&mut sum);
                crate::rows::add_assign(numbers, &grad);
                sum
            }
        };
        self.put(id, sum);
    }

    fn add_tensor(&mut self, id: TensorId, grad: &Tensor) -> Result<()> {
        let grad = grad.contiguous()?;
        crate::float::with_float!("backward", grad.dtype(), T => {
            let numbers = data::<T>(&grad)?.to_vec();
            self.add(id, Arc::new(numbers));
            Ok(())
        })
    }

    fn tensor(&mut self, like: &Tensor) -> Result<Option<Tensor>> {
        let Some(buffer) = self.0.remove(&like.id()) else {
            return Ok(None);
        };
        let own = |shape: &Shape| match buffer {
            Buffer::F32(grad) => Tensor::from_vec(unshared(grad), shape, &Device::Cpu),
            Buffer::F64(grad) => Tensor::from_vec(unshared(grad), shape, &Device::Cpu),
        };
        Ok(Some(own(like.shape())?))
    }
}

fn unshared<T: Clone>(grad: Arc<Vec<T>>) -> Vec<T> {
    Arc::try_unwrap(grad).unwrap_or_else(|grad| (*grad).clone())
}

/// One thing that the backward pass does.
enum Step {
    Recorded(Arc<Node>),
    /// A tensor that candle's operations made from recorded tensors and variables.
    Region(Tensor),
}

#[derive(Default)]
struct Order {
    steps: Vec<Step>,
    nodes: HashSet<*const Node>,
    regions: HashSet<TensorId>,
}

impl Order {
    /// Inputs before what is made from them.
    fn visit(&mut self, tensor: &Tensor) {
        if !tensor.track_op() || tensor.is_variable() {
            return;
        }
        if let Some(output) = find(tensor) {
            self.visit_node(&output.node);
        } else if self.regions.insert(tensor.id()) {
            for node in tensor.sorted_nodes() {
                if find(node).is_some() {
                    self.visit(node);
                }
            }
            self.steps.push(Step::Region(tensor.clone()));
        }
    }

    fn visit_node(&mut self, node: &Arc<Node>) {
        if self.nodes.insert(Arc::as_ptr(node)) {
            for input in &node.inputs {
                match input {
                    Kept::Whole(tensor) => self.visit(tensor),
                    Kept::Place(output) => self.visit_node(&output.node),
                }
            }
            self.steps.push(Step::Recorded(Arc::clone(node)));
        }
    }
}

/// Back-propagates from a scalar and returns the gradients of `wanted`, `None` where the scalar does not depend on it.
pub(crate) fn backward(root: &Tensor, wanted: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
    if composed::used_for(root) {
        return all_of_candle(root, wanted);
    }
    let mut order = Order::default();
    order.visit(root);
    let mut sums = Sums::default();
    sums.add_tensor(root.id(), &root.ones_like()?)?;
    while let Some(step) = order.steps.pop() {
        match step {
            Step::Recorded(node) => node.backward.backward(&node, &mut sums)?,
            Step::Region(tensor) => region(&tensor, &mut sums)?,
        }
    }
    wanted.iter().map(|tensor| sums.tensor(tensor)).collect()
}

/// [`backward`] of a graph in which nothing is recorded.
fn all_of_candle(root: &Tensor, wanted: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "what was composed is candle's to differentiate"
    )]
    let store = root.backward()?;
    let grad = |tensor: &&Tensor| match store.get(tensor) {
        // A product with a variable is a graph of its own, and a sum's gradient a single number with strides of 0.
        Some(grad) => Ok(Some(grad.detach().contiguous()?)),
        None => Ok(None),
    };
    wanted.iter().map(grad).collect()
}

/// Lets candle differentiate its own operations, down to variables and recorded tensors.
fn region(tensor: &Tensor, sums: &mut Sums) -> Result<()> {
    let nodes = tensor.sorted_nodes();
    if let Some(whole) = nodes.iter().find(|node| is_view_of(tensor, node)) {
        if let Some(grad) = sums.0.remove(&tensor.id()) {
            match grad {
                Buffer::F32(grad) => sums.add(whole.id(), grad),
                Buffer::F64(grad) => sums.add(whole.id(), grad),
            }
        }
        return Ok(());
    }
    let Some(grad) = sums.tensor(tensor)? else {
        return Ok(());
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "candle differentiates its own operations between recorded ones"
    )]
    let store = crate::Seed::from_candle(tensor, &grad)?.backward()?;
    for node in nodes {
        if node.is_variable() {
            if let Some(grad) = store.get(node) {
                sums.add_tensor(node.id(), grad)?;
            }
        } else if let Some(output) = find(node)
            && let Some(grad) = locked(&output.arrived).take()
        {
            sums.add_tensor(node.id(), &grad)?;
        }
    }
    Ok(())
}

/// True if `view` has the numbers of a variable or recorded tensor in the same order under another shape.
fn is_view_of(view: &Tensor, whole: &Tensor) -> bool {
    if !whole.is_variable() && find(whole).is_none() {
        return false;
    }
    let ((view, view_layout), (whole, whole_layout)) =
        (view.storage_and_layout(), whole.storage_and_layout());
    let same = match (&*view, &*whole) {
        (Storage::Cpu(view), Storage::Cpu(whole)) => std::ptr::eq(view, whole),
        _ => false,
    };
    same && view_layout.contiguous_offsets().is_some()
        && view_layout.contiguous_offsets() == whole_layout.contiguous_offsets()
}

/// Visits every tensor of the graphs behind `outputs` that candle or an operation keeps, each once.
pub(crate) fn for_each<'a>(
    outputs: impl IntoIterator<Item = &'a Tensor>,
    visit: &mut impl FnMut(&Tensor),
) {
    let mut seen = HashSet::new();
    let mut open: Vec<Tensor> = outputs.into_iter().cloned().collect();
    while let Some(tensor) = open.pop() {
        for node in tensor.sorted_nodes() {
            if !seen.insert(node.id()) {
                continue;
            }
            if let Some(output) = find(node) {
                visit(node);
                kept_by(&output.node, &mut open);
            } else if !is_source(node) {
                visit(node);
            }
        }
    }
}

/// The tensors that a node keeps, and those that the makers of its other inputs keep.
fn kept_by(node: &Arc<Node>, tensors: &mut Vec<Tensor>) {
    for input in &node.inputs {
        match input {
            Kept::Whole(tensor) => tensors.push(tensor.clone()),
            Kept::Place(output) => kept_by(&output.node, tensors),
        }
    }
}

fn is_source(tensor: &Tensor) -> bool {
    source().is_ok_and(|source| source.id() == tensor.id())
}

#[cfg(test)]
mod tests;
