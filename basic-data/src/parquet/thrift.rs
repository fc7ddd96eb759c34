//! Reads the sizes that a Parquet file claims, and the depth of its schema, from Thrift's compact protocol before the
//! library trusts them.

/// The largest nesting of a schema or of a skipped value; deeper ones would overflow the library's stack.
const DEPTH: usize = 40;

/// Why claims could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The bytes end before the structure does.
    Short,
    /// The bytes are not such a structure.
    Wrong,
    /// The schema nests deeper than any that holds conversations.
    Deep,
}

/// What the header of a page claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PageClaims {
    /// Size of the header itself in bytes.
    pub header: usize,
    /// Size of the page in the file in bytes.
    pub packed: u64,
    /// Size of the decompressed page in bytes.
    pub plain: u64,
    /// Number of values, nulls included.
    pub values: u64,
}

/// Reads the header at the beginning of `bytes`.
pub(super) fn page(bytes: &[u8]) -> Result<PageClaims, Unreadable> {
    let mut input = Compact { bytes, at: 0 };
    let mut claims = PageClaims::default();
    let mut last = 0;
    while let Some((id, kind)) = input.field(&mut last)? {
        match (id, kind) {
            (2, Kind::Number) => claims.plain = input.size()?,
            (3, Kind::Number) => claims.packed = input.size()?,
            (5 | 7 | 8, Kind::Struct) => {
                let mut last = 0;
                while let Some((id, kind)) = input.field(&mut last)? {
                    match (id, kind) {
                        (1, Kind::Number) => claims.values = input.size()?,
                        _ => input.skip(kind, DEPTH)?,
                    }
                }
            }
            _ => input.skip(kind, DEPTH)?,
        }
    }
    claims.header = input.at;
    Ok(claims)
}

/// Checks that the schema in a footer is not too deep for the library's recursion.
pub(super) fn check_schema(footer: &[u8]) -> Result<(), Unreadable> {
    let mut input = Compact { bytes: footer, at: 0 };
    let mut last = 0;
    while let Some((id, kind)) = input.field(&mut last)? {
        if (id, kind) != (2, Kind::List) {
            input.skip(kind, DEPTH)?;
            continue;
        }
        let (len, item) = input.list()?;
        // For every open level, the number of children that are still to come.
        let mut open: Vec<u64> = Vec::new();
        for _ in 0..len {
            if item != Kind::Struct {
                return Err(Unreadable::Wrong);
            }
            let (mut last, mut children) = (0, 0);
            while let Some((id, kind)) = input.field(&mut last)? {
                match (id, kind) {
                    (5, Kind::Number) => children = input.size()?,
                    _ => input.skip(kind, DEPTH)?,
                }
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if children > 0 {
                open.push(children);
            }
            if open.len() > DEPTH {
                return Err(Unreadable::Deep);
            }
            while open.last() == Some(&0) {
                open.pop();
            }
        }
        return Ok(());
    }
    Err(Unreadable::Wrong)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flag,
    Byte,
    Number,
    Double,
    Binary,
    List,
    Map,
    Struct,
}

struct Compact<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Compact<'_> {
    fn byte(&mut self) -> Result<u8, Unreadable> {
        let byte = *self.bytes.get(self.at).ok_or(Unreadable::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut number = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Unreadable::Wrong)
    }

    /// Reads a number that must not be negative.
    fn size(&mut self) -> Result<u64, Unreadable> {
        let number = self.varint()?;
        if number & 1 == 0 { Ok(number >> 1) } else { Err(Unreadable::Wrong) }
    }

    /// The next field; `None` at the end of the structure.
    fn field(&mut self, last: &mut u64) -> Result<Option<(u64, Kind)>, Unreadable> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        *last = match byte >> 4 {
            0 => self.size()?,
            step => last.saturating_add(u64::from(step)),
        };
        Ok(Some((*last, kind(byte & 0x0f)?)))
    }

    fn list(&mut self) -> Result<(u64, Kind), Unreadable> {
        let byte = self.byte()?;
        let len = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
        Ok((len, kind(byte & 0x0f)?))
    }

    fn forward(&mut self, by: u64) -> Result<(), Unreadable> {
        let left = (self.bytes.len() - self.at) as u64;
        if by > left {
            return Err(Unreadable::Short);
        }
        self.at += by as usize;
        Ok(())
    }

    fn skip(&mut self, kind: Kind, depth: usize) -> Result<(), Unreadable> {
        let depth = depth.checked_sub(1).ok_or(Unreadable::Wrong)?;
        match kind {
            Kind::Flag => Ok(()),
            Kind::Byte => self.forward(1),
            Kind::Number => self.varint().map(|_| ()),
            Kind::Double => self.forward(8),
            Kind::Binary => {
                let len = self.varint()?;
                self.forward(len)
            }
            Kind::List => {
                let (len, item) = self.list()?;
                // In a list each boolean takes a byte; in a structure it takes none.
                let item = if item == Kind::Flag { Kind::Byte } else { item };
                (0..len).try_for_each(|_| self.skip(item, depth))
            }
            Kind::Map => {
                let len = self.varint()?;
                if len == 0 {
                    return Ok(());
                }
                let kinds = self.byte()?;
                let (key, value) = (kind_of_item(kinds >> 4)?, kind_of_item(kinds & 0x0f)?);
                (0..len).try_for_each(|_| self.skip(key, depth).and_then(|()| self.skip(value, depth)))
            }
            Kind::Struct => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth)?;
                }
                Ok(())
            }
        }
    }
}

fn kind(code: u8) -> Result<Kind, Unreadable> {
    Ok(match code {
        1 | 2 => Kind::Flag,
        3 => Kind::Byte,
        4..=6 => Kind::Number,
        7 => Kind::Double,
        8 => Kind::Binary,
        9 | 10 => Kind::List,
        11 => Kind::Map,
        12 => Kind::Struct,
        _ => return Err(Unreadable::Wrong),
    })
}

fn kind_of_item(code: u8) -> Result<Kind, Unreadable> {
    kind(code).map(|kind| if kind == Kind::Flag { Kind::Byte } else { kind })
}

#[cfg(test)]
mod tests {
    use super::{PageClaims, Unreadable, check_schema, page};

    #[test]
    fn a_page_says_its_sizes_and_a_cut_one_nothing() {
        // Type 0, uncompressed 300, compressed 20, a data page of 7 values with encodings.
        let bytes = [0x15, 0, 0x15, 0xd8, 0x04, 0x15, 40, 0x2c, 0x15, 14, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0, 99];
        let claims = PageClaims { header: 18, packed: 20, plain: 300, values: 7 };
        assert_eq!(page(&bytes), Ok(claims));
        for keep in 0..18 {
            assert_eq!(page(&bytes[..keep]), Err(Unreadable::Short), "{keep}");
        }
        let negative = [0x15, 0, 0x15, 1, 0];
        assert_eq!(page(&negative), Err(Unreadable::Wrong));
    }

    #[test]
    fn a_schema_nests_as_deep_as_tables_do_and_no_deeper() {
        let schema = |depth: usize| {
            // The version, then a list of structures with one child each.
            let mut bytes = vec![0x15, 2, 0x19, 0xfc, depth as u8 | 0x80, (depth >> 7) as u8];
            (0..depth).for_each(|at| bytes.extend([0x55, if at + 1 < depth { 2 } else { 0 }, 0]));
            bytes.push(0);
            bytes
        };
        assert_eq!(check_schema(&schema(20)), Ok(()));
        assert_eq!(check_schema(&schema(10_000)), Err(Unreadable::Deep));
        assert!(check_schema(&[0]).is_err() && check_schema(&[]).is_err());
    }
}
