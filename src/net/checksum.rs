//! The Internet checksum (RFC 1071).

/// The sum of the 16-bit words, the last one padded. Datagrams are too short for it to overflow.
pub fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]))).sum()
}

/// The checksum from a sum: carries folded in, complemented.
pub fn fold(sum: u32) -> u16 {
    let carried = (sum & 0xffff) + (sum >> 16);
    let carried = (carried & 0xffff) + (carried >> 16);
    !u16::try_from(carried & 0xffff).unwrap_or(0)
}
