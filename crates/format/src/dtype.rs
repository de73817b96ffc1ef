//! The dtypes that safetensors knows, in the order in which the reference writes them.

use candle_core::DType;

/// A dtype as a file stores it: an index into [`TABLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stored(usize);

struct Row {
    name: &'static str,
    bits: u64,
    /// What it loads as; `None` if it cannot be loaded.
    loads_as: Option<DType>,
}

/// In the reference's order, narrow to wide: files hold their tensors in the reverse of it, then by name.
const TABLE: [Row; 22] = [
    // candle has no booleans; one byte of 0 or 1 is what torch copies them from.
    row("BOOL", 8, Some(DType::U8)),
    row("F4", 4, None),
    row("F6_E2M3", 6, None),
    row("F6_E3M2", 6, None),
    row("U8", 8, Some(DType::U8)),
    row("I8", 8, None),
    row("F8_E5M2", 8, None),
    row("F8_E4M3", 8, None),
    row("F8_E8M0", 8, None),
    row("F8_E4M3FNUZ", 8, None),
    row("F8_E5M2FNUZ", 8, None),
    row("I16", 16, Some(DType::I16)),
    row("U16", 16, None),
    row("F16", 16, Some(DType::F16)),
    row("BF16", 16, Some(DType::BF16)),
    row("I32", 32, Some(DType::I32)),
    row("U32", 32, Some(DType::U32)),
    row("F32", 32, Some(DType::F32)),
    row("C64", 64, None),
    row("F64", 64, Some(DType::F64)),
    row("I64", 64, Some(DType::I64)),
    row("U64", 64, None),
];

const fn row(name: &'static str, bits: u64, loads_as: Option<DType>) -> Row {
    Row {
        name,
        bits,
        loads_as,
    }
}

impl Stored {
    /// The dtype that files call `name`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        TABLE.iter().position(|row| row.name == name).map(Self)
    }

    /// What a tensor of `dtype` is stored as; `None` if it cannot be read back.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        let found = TABLE
            .iter()
            .rposition(|row| row.loads_as == Some(dtype))
            .map(Self);
        debug_assert!(found.is_none_or(|stored| stored.name() != "BOOL"));
        found
    }

    pub(crate) fn name(self) -> &'static str {
        TABLE[self.0].name
    }

    pub(crate) fn bits(self) -> u64 {
        TABLE[self.0].bits
    }

    pub(crate) fn loads_as(self) -> Option<DType> {
        TABLE[self.0].loads_as
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loadable_dtype_is_stored_under_its_own_name_and_width() {
        for dtype in [
            DType::U8,
            DType::U32,
            DType::I16,
            DType::I32,
            DType::I64,
            DType::BF16,
            DType::F16,
            DType::F32,
            DType::F64,
        ] {
            let stored = Stored::of(dtype).unwrap();
            assert_eq!(stored.name(), dtype.as_str().to_uppercase());
            assert_eq!(stored.bits(), 8 * dtype.size_in_bytes() as u64);
        }
        assert_eq!(Stored::of(DType::F8E4M3), None);
    }

    #[test]
    fn the_order_is_the_references() {
        use safetensors::Dtype;
        let reference = [
            Dtype::BOOL,
            Dtype::F4,
            Dtype::F6_E2M3,
            Dtype::F6_E3M2,
            Dtype::U8,
            Dtype::I8,
            Dtype::F8_E5M2,
            Dtype::F8_E4M3,
            Dtype::F8_E8M0,
            Dtype::F8_E4M3FNUZ,
            Dtype::F8_E5M2FNUZ,
            Dtype::I16,
            Dtype::U16,
            Dtype::F16,
            Dtype::BF16,
            Dtype::I32,
            Dtype::U32,
            Dtype::F32,
            Dtype::C64,
            Dtype::F64,
            Dtype::I64,
            Dtype::U64,
        ];
        assert!(reference.is_sorted());
        let names: Vec<String> = reference.iter().map(ToString::to_string).collect();
        assert_eq!(names, TABLE.each_ref().map(|row| row.name));
        for (dtype, row) in reference.iter().zip(&TABLE) {
            assert_eq!(dtype.bitsize() as u64, row.bits, "{dtype}");
        }
    }
}
