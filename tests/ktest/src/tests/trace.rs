use crate::trace::{Base64, Codec, PHASES, Packed, from_base64};
use proptest::prelude::*;
use std::{string::ToString, vec::Vec};

fn record() -> impl Strategy<Value = Packed> {
    let words = (any::<u64>(), any::<u64>(), any::<[u32; PHASES]>(), any::<u32>(), any::<u16>());
    (words, any::<[u8; 4]>(), 0..16_u8, 0..16_u8).prop_map(
        |((start, addr, ends, number, gone), b, from, to)| {
            let mut ends = ends;
            ends.iter_mut().enumerate().for_each(|(n, end)| *end *= u32::from(gone >> n & 1));
            Packed {
                start,
                addr,
                ends,
                number,
                kind: b[0],
                outcome: b[1],
                order: b[2],
                from,
                to,
                thread: b[3],
            }
        },
    )
}

fn decode(codec: &mut Codec, text: &str) -> Option<Vec<Packed>> {
    let (mut bytes, mut records) = (Vec::new(), Vec::new());
    let whole = from_base64(text, &mut |byte| bytes.push(byte));
    (whole && codec.decode(&bytes, &mut |record| records.push(record))).then_some(records)
}

proptest! {
    #[test]
    fn records_make_the_trip(records in prop::collection::vec(record(), 0..20)) {
        let (mut there, mut here, mut came) = (Codec::default(), Codec::default(), Vec::new());
        // Several on a line.
        for line in records.chunks(3) {
            let bytes: Vec<u8> = line.iter().flat_map(|one| there.encode(one).as_slice().to_vec()).collect();
            came.extend(decode(&mut here, &Base64(&bytes).to_string()).expect("whole"));
        }
        prop_assert_eq!(came, records);
    }

    #[test]
    fn no_text_brings_the_reader_down(text in "[A-Za-z0-9_ =-]{0,64}") {
        let _ = decode(&mut Codec::default(), &text);
    }
}

#[test]
fn what_is_cut_off_is_noticed() {
    let record = Packed {
        start: 1000,
        addr: 0x10_0000_0000,
        ends: [0, 20, 90, 0, 130, 700, 0, 800],
        ..Packed::default()
    };
    let bytes = Codec::default().encode(&record).as_slice().to_vec();
    assert!(bytes.len() < 30, "{} bytes", bytes.len());
    for len in 1..bytes.len() {
        assert!(!Codec::default().decode(&bytes[..len], &mut |_| {}), "{len} of {}", bytes.len());
    }
    assert!(Codec::default().decode(&bytes, &mut |one| assert_eq!(one, record)));
}
