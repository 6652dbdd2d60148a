/* The websocket handshake: does the server's answer fit the client's key?
 *
 * RFC 6455, 4.2.2: accept = base64(SHA-1(key + GUID)). SHA-1 is FIPS 180-4; here it only proves that the server speaks
 * websocket, so its weakness does not matter.
 */
#include "http_bytes.h"
#include "http_fields.h"

#define KEY_BYTES 24
#define ACCEPT_BYTES 28

static uint32_t rotate_left(uint32_t x, unsigned by)
{
    return x << by | x >> (32 - by);
}

static void sha1_block(uint32_t hash[5], const uint8_t block[64])
{
    uint32_t w[80], a = hash[0], b = hash[1], c = hash[2], d = hash[3], e = hash[4];
    for (int t = 0; t < 16; t++) {
        const uint8_t *word = block + 4 * t;
        w[t] = (uint32_t)word[0] << 24 | (uint32_t)word[1] << 16 | (uint32_t)word[2] << 8 | word[3];
    }
    for (int t = 16; t < 80; t++)
        w[t] = rotate_left(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    for (int t = 0; t < 80; t++) {
        const uint32_t f = t < 20   ? ((b & c) | (~b & d)) + 0x5a827999
                           : t < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                           : t < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc
                                    : (b ^ c ^ d) + 0xca62c1d6;
        const uint32_t next = rotate_left(a, 5) + f + e + w[t];
        e = d;
        d = c;
        c = rotate_left(b, 30);
        b = a;
        a = next;
    }
    hash[0] += a;
    hash[1] += b;
    hash[2] += c;
    hash[3] += d;
    hash[4] += e;
}

bool websocket_key_is_valid(struct span key)
{
    if (key.n != KEY_BYTES || key.at[22] != '=' || key.at[23] != '=')
        return false;
    for (uint32_t i = 0; i < 22; i++)
        if (!byte_is(key.at[i], BYTE_BASE64))
            return false;
    return true;
}

bool http_websocket_agrees(struct span key, struct span accept)
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (!websocket_key_is_valid(key) || accept.n != ACCEPT_BYTES)
        return false;

    uint8_t message[128] = { 0 };       /* 60 bytes, the end mark, and the length in bits: two blocks */
    memcpy(message, key.at, KEY_BYTES);
    memcpy(message + KEY_BYTES, guid, sizeof guid - 1);
    message[60] = 0x80;
    message[126] = 60 * 8 >> 8;
    message[127] = (60 * 8) & 0xff;
    uint32_t hash[5] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 };
    sha1_block(hash, message);
    sha1_block(hash, message + 64);

    uint8_t sum[21] = { 0 };            /* 20 bytes, and zero bits up to a multiple of 24 */
    for (int i = 0; i < 20; i++)
        sum[i] = (uint8_t)(hash[i / 4] >> (24 - 8 * (i % 4)));
    char expected[ACCEPT_BYTES];
    for (int i = 0; i < 7; i++) {
        const uint32_t bits = (uint32_t)sum[3 * i] << 16 | (uint32_t)sum[3 * i + 1] << 8 | sum[3 * i + 2];
        for (int j = 0; j < 4; j++)
            expected[4 * i + j] = digits[bits >> (18 - 6 * j) & 63];
    }
    expected[ACCEPT_BYTES - 1] = '=';
    return memcmp(expected, accept.at, ACCEPT_BYTES) == 0;
}
