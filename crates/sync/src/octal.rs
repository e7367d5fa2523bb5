//! Bytes that other programs print in octal.

/// Reads three octal digits behind `mark` as the byte that they stand for.
pub fn unescape(text: &[u8], mark: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                behind @ ..,
            ],
        ) = rest.strip_prefix(mark)
        {
            bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = behind;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}
