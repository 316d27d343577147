//! What holds the weights in a file that Python wrote.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    StateDict,
    /// A module that was pickled whole.
    Module,
    /// A module that TorchScript saved.
    Script,
    /// A list or tuple of tensors, or one tensor.
    Loose,
    /// Dicts of dicts: only where a key asks for them.
    Nested,
}
