use super::*;
use crate::types::MAX_DEVICES;

const CACHES: [CacheType; 3] = [CacheType::WriteBack, CacheType::WriteCombining, CacheType::Uncached];
const KINDS: [SoftKind; 4] =
    [SoftKind::Migration, SoftKind::DevicePrivate, SoftKind::DeviceExclusive, SoftKind::ProtNone];
const LEVELS: [Level; 2] = [Level::Pte, Level::Pmd];
/// Multiples of 512: fit for both levels.
const INDICES: [u32; 7] = [0, 512, 1024, 0x5555_5400, 0xaaaa_aa00, 1 << 31, !511];

fn attr_sets() -> impl Iterator<Item = Attrs> {
    (0..=u16::MAX).filter_map(Attrs::from_bits)
}

fn places() -> impl Iterator<Item = Place> {
    core::iter::once(Place::RAM).chain((0..MAX_DEVICES).flat_map(|n| [Place::device(n), Place::coherent(n)]))
}

fn frames(level: Level) -> impl Iterator<Item = Frame> {
    let odd = if level == Level::Pte { vec![1, 511, 0xffff_ffff] } else { vec![] };
    places().flat_map(move |place| {
        INDICES.into_iter().chain(odd.clone()).map(move |index| Frame::new(place, index))
    })
}

/// Every entry that there is, but for most of the frame numbers.
fn entries(level: Level) -> Vec<Entry> {
    let mut all = Vec::new();
    for frame in frames(level) {
        for attrs in attr_sets() {
            all.extend(KINDS.map(|kind| Entry::NonPresent(SoftLeaf { kind, frame, attrs })));
            for special in [false, true].into_iter().filter(|_| !attrs.contains(Attrs::NO_ACCESS)) {
                all.extend(CACHES.map(|cache| Entry::Leaf(Leaf { frame, attrs, special, cache })));
            }
        }
    }
    all
}

#[test]
fn there_are_eight_attributes() {
    assert_eq!(attr_sets().count(), 1 << 8);
}

#[test]
fn every_entry_comes_back_from_its_word() {
    for level in LEVELS {
        for entry in entries(level) {
            assert_eq!(Entry::try_decode(entry.encode(level), level), Ok(entry));
        }
    }
    for level in [Level::Pmd, Level::Pud, Level::Pgd] {
        for pfn in INDICES.into_iter().chain([1, u32::MAX]) {
            let word = Entry::Table(pfn).encode(level);
            assert_eq!(Entry::try_decode(word, level), Ok(Entry::Table(pfn)));
            assert_eq!(Entry::try_decode(word | A, level), Ok(Entry::Table(pfn)), "the CPU sets A here");
        }
        assert_eq!(Entry::try_decode(0, level), Ok(Entry::None));
    }
}

#[test]
fn non_present_entries_keep_their_bits_clear() {
    for level in LEVELS {
        for entry in entries(level) {
            let word = entry.encode(level);
            match entry {
                Entry::NonPresent(_) => assert_eq!(word & NON_PRESENT_CLEAR, 0, "{entry:?}"),
                _ => assert_eq!(word & P, P, "{entry:?}"),
            }
            assert_ne!(word, 0, "{entry:?} must not look like nothing");
        }
    }
}

/// A flipped bit is an error, or it is another entry: no two words mean the same, so no bit is ignored.
#[test]
fn every_flipped_bit_is_noticed() {
    for level in LEVELS {
        for entry in entries(level) {
            let word = entry.encode(level);
            for bit in 0..64 {
                let flipped = word ^ 1 << bit;
                if let Ok(other) = Entry::try_decode(flipped, level) {
                    assert_ne!(other, entry, "bit {bit} of {word:#x} means nothing");
                    let back = if matches!(other, Entry::Table(_)) { flipped & !A } else { flipped };
                    assert_eq!(other.encode(level), back, "{other:?}");
                }
            }
        }
    }
}

#[test]
fn what_nobody_encodes_is_refused() {
    let bad = [
        (P, Level::Pte),                          // a supervisor page
        (P | RW | US | 1 << 8, Level::Pte),       // global
        (P | RW | US | PWT, Level::Pte),          // write-through
        (P | RW | US | 1 << 45, Level::Pte),      // a frame beyond 32 bits
        (P | RW | US | PS | 1 << 13, Level::Pmd), // not aligned
        (P | RW | US | PS, Level::Pud),           // a 1 GiB page
        (P | US, Level::Pmd),                     // a read-only table
        (P | RW | US | NX, Level::Pgd),           // a table that forbids execution
        (RW, Level::Pte),                         // no kind
        (7 << KIND_SHIFT | ADDR, Level::Pte),     // no such kind
        (1 << KIND_SHIFT | ADDR | A, Level::Pte), // bits that must be clear
        (1 << KIND_SHIFT | ADDR | PS, Level::Pmd),
        (1 << KIND_SHIFT | ADDR, Level::Pud),              // too high up
        (1 << KIND_SHIFT | ADDR & !(1 << 12), Level::Pmd), // not aligned
        (1 << KIND_SHIFT | ADDR | 8 << PLACE_SHIFT, Level::Pte), // no such device
        (0xdead_beef_dead_beee, Level::Pte),
    ];
    for (word, level) in bad {
        assert_eq!(Entry::try_decode(word, level), Err(BadEntry { word, level }), "{word:#x}");
    }
}

/// A CPU with L1TF takes bits 51:12 of a non-present entry, cut to its physical address bits, for an address. That must
/// be memory near the top of what it can address, never the frame named.
#[test]
fn non_present_entries_name_the_top_of_memory_to_a_speculating_cpu() {
    for phys_bits in 36..=52 {
        let top = 1_u64 << (phys_bits - 12);
        let ram = (top / 4).min(u64::from(u32::MAX)) as u32;
        for index in [0, 1, 511, 512, ram / 2, ram - 1] {
            for kind in KINDS {
                let soft = SoftLeaf::new(kind, Frame::ram(index), Attrs::all());
                let word = Entry::NonPresent(soft).encode(Level::Pte);
                let seen = (word & ((1 << phys_bits) - 1)) >> 12;
                assert!(seen >= top - u64::from(ram), "{soft:?} names {seen:#x} with {phys_bits} bits");
            }
        }
    }
}

#[test]
fn what_is_restricted_is_gone_and_the_rest_stays() {
    let all = Attrs::all() - Attrs::NO_ACCESS;
    for bits in 0..1 << 13 {
        let Some(remove) = Attrs::from_bits(bits).filter(|a| !a.contains(Attrs::NO_ACCESS)) else { continue };
        let before = Entry::Leaf(Leaf::ram(Frame::ram(0x1234), all)).encode(Level::Pte);
        let (clear, set) = restrict_bits(remove);
        let after = Entry::decode(before & !clear | set, Level::Pte);
        assert_eq!(after, Entry::Leaf(Leaf::ram(Frame::ram(0x1234), all - remove)));
    }
}

#[test]
fn an_upgrade_only_adds_bits_and_never_forbids_execution() {
    for attrs in attr_sets().filter(|attrs| !attrs.contains(Attrs::NO_ACCESS)) {
        let before = Entry::Leaf(Leaf::ram(Frame::ram(512), Attrs::EXEC)).encode(Level::Pte);
        let after = before | upgrade_bits(attrs);
        let expected = Leaf::ram(Frame::ram(512), attrs | Attrs::EXEC);
        assert_eq!(Entry::decode(after, Level::Pte), Entry::Leaf(expected));
    }
}

/// What loops do from word to word is what decoding, changing and encoding gives.
#[test]
fn steps_from_word_to_word_are_those_of_the_entries() {
    for level in LEVELS {
        for entry in entries(level) {
            let old = entry.encode(level);
            match entry {
                Entry::Leaf(leaf) => {
                    let plain =
                        !leaf.special && leaf.frame.place().is_ram() && leaf.cache == CacheType::WriteBack;
                    if level == Level::Pte {
                        assert_eq!(word::plain_ram(old), plain.then_some(leaf.frame), "{entry:?}");
                        let shared = plain && !leaf.attrs.intersects(Attrs::WRITE | Attrs::EXCLUSIVE);
                        assert_eq!(word::plain_shared(old), shared.then_some(leaf.frame), "{entry:?}");
                    }
                    if plain && level == Level::Pte {
                        let soft = SoftLeaf::new(SoftKind::Migration, leaf.frame, leaf.attrs);
                        assert_eq!(word::leaf_to_migration(old), Entry::NonPresent(soft).encode(level));
                    }
                    assert_eq!(word::device_private(old), None);
                }
                Entry::NonPresent(soft) => {
                    let private = soft.kind == SoftKind::DevicePrivate;
                    assert_eq!(word::device_private(old), private.then_some(soft.frame));
                    let migration = soft.kind == SoftKind::Migration;
                    assert_eq!(word::is_migration_of(old, soft.frame), migration);
                    let to = Frame::new(Place::device(1), 1024);
                    for to in [to, Frame::ram(512), Frame::new(Place::coherent(2), 1536)] {
                        let expected = Entry::mapping(to, soft.attrs).encode(level);
                        assert_eq!(word::migration_to(old, to, level), expected, "{entry:?}");
                    }
                }
                Entry::None | Entry::Table(_) => {}
            }
        }
    }
}
