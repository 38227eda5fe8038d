use proptest::prelude::*;

use super::*;

#[test]
fn placeholder_broadcast_is_read_back_by_its_checks() {
    let frame = broadcast([2, 0, 0, 0, 0, 1], &[7; 301]).unwrap();
    assert_eq!(ip_payload(&frame[ETHERNET..]).unwrap().len(), UDP + 301);
}

proptest! {
    #[test]
    fn parse_never_panics(frame: Vec<u8>) {
        let _ = parse_frame(&frame);
    }
}
