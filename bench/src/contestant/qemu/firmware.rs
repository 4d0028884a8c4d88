//! What a QEMU's guest runs instead of a BIOS: it writes eight bytes in each page of its working set, over and over, as
//! [`Touch`] says. Put together by hand, here; nothing of it is anybody else's.
//!
//! ```text
//!   0xfffffe00  three descriptors: null, flat code, flat data
//!   0xfffffe20  where those are
//!   0xffffff00  16 bits: into protected mode
//!   0xffffff40  32 bits: fill, then touch for ever
//!   0xfffffff0  where a processor begins: a jump
//! ```

use mig_ram::PAGE_SIZE;

use crate::role::Touch;

/// The image ends where 32 bits of address do.
const LEN: usize = 64 << 10;

const DESCRIPTORS: usize = 0xfe00;
const DESCRIPTORS_AT: usize = 0xfe20;
const REAL: usize = 0xff00;
const PROTECTED: usize = 0xff40;
const RESET: usize = 0xfff0;

/// The image for `-bios`.
pub(super) fn image(touch: Touch) -> Vec<u8> {
    let mut image = vec![0xf4; LEN];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(DESCRIPTORS, &[0; 8]);
    // Base 0, limit 4 GiB, 32 bits, present, accessed already: the table is in ROM.
    put(DESCRIPTORS + 0x08, &[0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0]);
    put(DESCRIPTORS + 0x10, &[0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0]);
    put(DESCRIPTORS_AT, &[0x17, 0, 0x00, 0xfe, 0xff, 0xff]);
    put(REAL, &REAL_MODE);
    let code = protected_mode(touch);
    assert!(PROTECTED + code.len() <= RESET, "there is room for {} bytes", RESET - PROTECTED);
    put(PROTECTED, &code);
    // jmp 0xff00
    put(RESET, &[0xe9, 0x0d, 0xff]);
    image
}

#[rustfmt::skip]
const REAL_MODE: [u8; 30] = [
    0xfa,                                           // cli
    0xe4, 0x92,                                     // in al, 0x92
    0x0c, 0x02,                                     // or al, 2              every address line
    0xe6, 0x92,                                     // out 0x92, al
    0x2e, 0x66, 0x0f, 0x01, 0x16, 0x20, 0xfe,       // lgdt cs:[0xfe20]
    0x0f, 0x20, 0xc0,                               // mov eax, cr0
    0x0c, 0x01,                                     // or al, 1
    0x0f, 0x22, 0xc0,                               // mov cr0, eax
    0x66, 0xea, 0x40, 0xff, 0xff, 0xff, 0x08, 0x00, // jmp 8:0xffffff40
];

fn protected_mode(touch: Touch) -> Vec<u8> {
    let words = touch.pages * (PAGE_SIZE as u32 / 4);
    let parts: [&[u8]; 20] = [
        &[0x66, 0xb8, 0x10, 0x00],  // mov ax, 16
        &[0x8e, 0xd8],              // mov ds, ax
        &[0x8e, 0xc0],              // mov es, ax
        &[0xfc],                    // cld
        &[0xbf],                    // mov edi, start
        &touch.start.to_le_bytes(), //
        &[0xb9],                    // mov ecx, words
        &words.to_le_bytes(),       //
        &[0xb8],                    // mov eax, fill
        &Touch::FILL.to_le_bytes(), //
        &[0xf3, 0xab],              // rep stosd
        &[0x31, 0xdb],              // xor ebx, ebx
        &[0x81, 0xc3],              // round: add ebx, step
        &Touch::STEP.to_le_bytes(), //
        &[0xbf],                    // mov edi, start
        &touch.start.to_le_bytes(), //
        &[0xb9],                    // mov ecx, pages
        &touch.pages.to_le_bytes(), //
        &PAGE,                      // page by page
        &[0xeb, 0xdf],              // jmp round
    ];
    parts.concat()
}

#[rustfmt::skip]
const PAGE: [u8; 15] = [
    0x89, 0x5f, Touch::AT,                          // page: mov [edi + AT], ebx
    0x89, 0x5f, Touch::AT + 4,                      // mov [edi + AT + 4], ebx
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,             // add edi, 4096
    0x49,                                           // dec ecx
    0x75, 0xf1,                                     // jnz page
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_where_the_comments_say() {
        let image = image(Touch::half_of(64 << 20));
        assert_eq!(image.len(), LEN);
        let reset = i16::from_le_bytes([image[RESET + 1], image[RESET + 2]]);
        assert_eq!((RESET + 3).wrapping_add_signed(isize::from(reset)), REAL);
        let code = protected_mode(Touch::half_of(64 << 20));
        let round = code.windows(2).position(|two| two == [0x81, 0xc3]).unwrap();
        let back = i8::from_le_bytes([code[code.len() - 1]]);
        assert_eq!(code.len().wrapping_add_signed(isize::from(back)), round);
        let page = code.windows(3).position(|three| three == &PAGE[..3]).unwrap();
        assert_eq!((page + PAGE.len()).wrapping_add_signed(isize::from(PAGE[14] as i8)), page);
    }
}
