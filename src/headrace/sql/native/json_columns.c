/* Columns out of JSON objects: the wanted fields of many small bodies, read in one pass over their bytes.

   The parser accepts a body only when it is sure: strict RFC 8259 text, UTF-8 throughout, numbers that it rounds exactly.
   Every other body is marked *slow* and nothing is said about it: the plain decoder judges that row, refusals included.
   So a mistake on the careful side costs time and never an answer. No byte outside a body is read, nothing recurses,
   and there is no state between calls: any number of threads may be in here. */

#include <float.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define DEPTH_MAX 128 /* deeper bodies are slow */
#define PLACES_MAX 64 /* keys of a row whose like is remembered from the row before */

enum { ABSENT, NUL, FALSE_, TRUE_, INTEGER, REAL, TEXT, ESCAPED, RECORD, ARRAY, KINDS };
enum { HAS_ESCAPE = 1, HAS_HIGH = 2 };

typedef const uint8_t *Bytes;

static inline Bytes blanks(Bytes p, Bytes end)
{
    if (p < end && *p > ' ')
        return p;
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r'))
        p++;
    return p;
}

/* Whether `size` bytes are equal: keys are short, and a call of memcmp would cost more than the comparison. */
static inline int same(Bytes a, Bytes b, int32_t size)
{
    if (size > 16)
        return memcmp(a, b, (size_t)size) == 0;
    if (size >= 8) {
        uint64_t a1, b1, a2, b2;
        memcpy(&a1, a, 8);
        memcpy(&b1, b, 8);
        memcpy(&a2, a + size - 8, 8);
        memcpy(&b2, b + size - 8, 8);
        return ((a1 ^ b1) | (a2 ^ b2)) == 0;
    }
    if (size >= 4) {
        uint32_t a1, b1, a2, b2;
        memcpy(&a1, a, 4);
        memcpy(&b1, b, 4);
        memcpy(&a2, a + size - 4, 4);
        memcpy(&b2, b + size - 4, 4);
        return ((a1 ^ b1) | (a2 ^ b2)) == 0;
    }
    for (int32_t at = 0; at < size; at++)
        if (a[at] != b[at])
            return 0;
    return 1;
}

/* Whether [p, end) is UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF. */
static int is_utf8(Bytes p, Bytes end)
{
    while (p < end) {
        uint8_t lead = *p;
        int more;
        if (lead < 0x80) {
            p++;
            continue;
        }
        if (lead >= 0xC2 && lead <= 0xDF)
            more = 1;
        else if (lead >= 0xE0 && lead <= 0xEF)
            more = 2;
        else if (lead >= 0xF0 && lead <= 0xF4)
            more = 3;
        else
            return 0;
        if (end - p <= more)
            return 0;
        uint8_t low = 0x80, high = 0xBF;
        if (lead == 0xE0)
            low = 0xA0;
        else if (lead == 0xED)
            high = 0x9F;
        else if (lead == 0xF0)
            low = 0x90;
        else if (lead == 0xF4)
            high = 0x8F;
        if (p[1] < low || p[1] > high)
            return 0;
        for (int at = 2; at <= more; at++)
            if (p[at] < 0x80 || p[at] > 0xBF)
                return 0;
        p += more + 1;
    }
    return 1;
}

/* Four hexadecimal digits, or -1. */
static int hex4(Bytes p, Bytes end)
{
    int code = 0;
    if (end - p < 4)
        return -1;
    for (int at = 0; at < 4; at++) {
        uint8_t c = p[at];
        if (c >= '0' && c <= '9')
            c -= '0';
        else if (c >= 'a' && c <= 'f')
            c -= 'a' - 10;
        else if (c >= 'A' && c <= 'F')
            c -= 'A' - 10;
        else
            return -1;
        code = code << 4 | c;
    }
    return code;
}

/* The end of the escape that begins at the backslash `p`, or NULL where it is none. Surrogates come in pairs. */
static Bytes escape(Bytes p, Bytes end)
{
    if (end - p < 2)
        return NULL;
    switch (p[1]) {
    case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't':
        return p + 2;
    case 'u': {
        int code = hex4(p + 2, end);
        if (code < 0 || (code >= 0xDC00 && code <= 0xDFFF))
            return NULL;
        if (code < 0xD800 || code > 0xDFFF)
            return p + 6;
        if (end - p < 12 || p[6] != '\\' || p[7] != 'u')
            return NULL;
        code = hex4(p + 8, end);
        return code >= 0xDC00 && code <= 0xDFFF ? p + 12 : NULL;
    }
    default:
        return NULL;
    }
}

/* The closing quote of the string whose first byte is `p`, or NULL. Adds to `has` what the string holds. */
static Bytes string_end(Bytes p, Bytes end, int *has)
{
    Bytes start = p;
    int high = 0;
    for (;;) {
#ifdef __SSE2__
        while (end - p >= 16) {
            __m128i block = _mm_loadu_si128((const __m128i *)p);
            __m128i stop = _mm_or_si128(_mm_cmpeq_epi8(block, _mm_set1_epi8('"')), _mm_cmpeq_epi8(block, _mm_set1_epi8('\\')));
            stop = _mm_or_si128(stop, _mm_cmpeq_epi8(_mm_min_epu8(block, _mm_set1_epi8(0x1F)), block));
            unsigned stops = (unsigned)_mm_movemask_epi8(stop), highs = (unsigned)_mm_movemask_epi8(block);
            if (stops) {
                unsigned at = (unsigned)__builtin_ctz(stops);
                high |= (highs & ((1u << at) - 1)) != 0;
                p += at;
                break;
            }
            high |= highs != 0;
            p += 16;
        }
#endif
        while (p < end && *p >= 0x20 && *p != '"' && *p != '\\') {
            high |= *p & 0x80;
            p++;
        }
        if (p == end || *p < 0x20)
            return NULL;
        if (*p == '"')
            break;
        *has |= HAS_ESCAPE;
        p = escape(p, end);
        if (p == NULL)
            return NULL;
    }
    if (high) {
        *has |= HAS_HIGH;
        if (!is_utf8(start, p))
            return NULL;
    }
    return p;
}

static inline int is_digit(Bytes p, Bytes end)
{
    return p < end && (uint8_t)(*p - '0') <= 9;
}

/* The end of a number, or NULL. */
static Bytes number_end(Bytes p, Bytes end)
{
    if (p < end && *p == '-')
        p++;
    if (!is_digit(p, end))
        return NULL;
    if (*p == '0')
        p++;
    else
        while (is_digit(p, end))
            p++;
    if (p < end && *p == '.') {
        if (!is_digit(++p, end))
            return NULL;
        while (is_digit(p, end))
            p++;
    }
    if (p < end && (*p | 0x20) == 'e') {
        p++;
        if (p < end && (*p == '+' || *p == '-'))
            p++;
        if (!is_digit(p, end))
            return NULL;
        while (is_digit(p, end))
            p++;
    }
    return p;
}

static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
static const uint64_t WHOLE_POWERS[] = {1ull, 10ull, 100ull, 1000ull, 10000ull, 100000ull, 1000000ull, 10000000ull,
                                        100000000ull, 1000000000ull, 10000000000ull, 100000000000ull, 1000000000000ull,
                                        10000000000000ull, 100000000000000ull, 1000000000000000ull,
                                        10000000000000000ull, 100000000000000000ull, 1000000000000000000ull,
                                        10000000000000000000ull};

static inline int bits_of(uint64_t value)
{
    return value ? 64 - __builtin_clzll(value) : 0;
}

/* digits * 10^power as the nearest double, ties to even; 0 where this function cannot say.
   Small digits and powers are exact doubles, so one operation rounds once (Clinger 1990). Else, for a fraction of at most
   19 places, the quotient is taken in integers with at least 55 bits, and the remainder decides the rounding. */
static int nearest(uint64_t digits, int power, double *out)
{
#if FLT_EVAL_METHOD == 0
    if (digits <= 1ull << 53 && power >= -22 && power <= 22) {
        *out = power < 0 ? (double)digits / POWERS[-power] : (double)digits * POWERS[power];
        return 1;
    }
#endif
#ifdef __SIZEOF_INT128__
    if (power < 0 && power >= -19 && digits) {
        uint64_t divisor = WHOLE_POWERS[-power];
        int shift = 55 + bits_of(divisor) - bits_of(digits); /* the quotient then has 55 or 56 bits, more if not shifted */
        if (shift < 0)
            shift = 0;
        unsigned __int128 wide = (unsigned __int128)digits << shift;
        uint64_t quotient = (uint64_t)(wide / divisor);
        int sticky = (unsigned __int128)quotient * divisor != wide;
        int extra = bits_of(quotient) - 53; /* 2 or more bits below the mantissa */
        uint64_t mantissa = quotient >> extra, rest = quotient & ((1ull << extra) - 1), half = 1ull << (extra - 1);
        if (rest > half || (rest == half && (sticky || (mantissa & 1))))
            mantissa++;
        uint64_t scale_bits = (uint64_t)(extra - shift + 1023) << 52; /* 2^(extra - shift), exact */
        double scale;
        memcpy(&scale, &scale_bits, 8);
        *out = (double)mantissa * scale;
        return 1;
    }
#endif
    return 0;
}

/* A number into `value` (an int64 or the bits of a double): its end, or NULL. `kind` is INTEGER or REAL. */
static Bytes number(Bytes p, Bytes end, uint8_t *kind, int64_t *value)
{
    int negative = *p == '-', count = 0, power = 0;
    uint64_t digits = 0;
    p += negative;
    if (!is_digit(p, end))
        return NULL;
    if (*p == '0')
        p++;
    else
        for (; is_digit(p, end); p++, count++) {
            if (count == 19)
                return NULL;
            digits = digits * 10 + (uint64_t)(*p - '0');
        }
    if (p == end || (*p != '.' && (*p | 0x20) != 'e')) {
        if (digits > (uint64_t)INT64_MAX + (uint64_t)negative)
            return NULL;
        *kind = INTEGER;
        *value = negative ? (int64_t)(0 - digits) : (int64_t)digits;
        return p;
    }
    if (*p == '.') {
        Bytes first = ++p;
        for (; is_digit(p, end); p++) {
            if (count == 19)
                return NULL;
            digits = digits * 10 + (uint64_t)(*p - '0');
            count += digits != 0;
        }
        if (p == first || p - first > 64)
            return NULL;
        power = -(int)(p - first);
    }
    if (p < end && (*p | 0x20) == 'e') {
        int down, given = 0, places = 0;
        p++;
        down = p < end && *p == '-';
        if (p < end && (*p == '+' || *p == '-'))
            p++;
        for (; is_digit(p, end); p++, places++) {
            if (places == 4)
                return NULL;
            given = given * 10 + (*p - '0');
        }
        if (places == 0)
            return NULL;
        power += down ? -given : given;
    }
    double found;
    if (!nearest(digits, power, &found))
        return NULL;
    if (negative)
        found = -found;
    *kind = REAL;
    memcpy(value, &found, 8);
    return p;
}

static inline Bytes literal(Bytes p, Bytes end, const char *text, int size)
{
    return end - p >= size && memcmp(p, text, (size_t)size) == 0 ? p + size : NULL;
}

/* The end of any value, checked but not kept; NULL where it is none or nested too deeply. */
static Bytes value_end(Bytes p, Bytes end)
{
    uint8_t open[DEPTH_MAX];
    int depth = 0, has = 0;
value:
    p = blanks(p, end);
    if (p == end)
        return NULL;
    switch (*p) {
    case '"':
        p = string_end(p + 1, end, &has);
        if (p == NULL)
            return NULL;
        p++;
        break;
    case '{':
        if (depth == DEPTH_MAX)
            return NULL;
        open[depth++] = '{';
        p = blanks(p + 1, end);
        if (p == end || *p != '}')
            goto key;
        p++;
        depth--;
        break;
    case '[':
        if (depth == DEPTH_MAX)
            return NULL;
        open[depth++] = '[';
        p = blanks(p + 1, end);
        if (p == end || *p != ']')
            goto value;
        p++;
        depth--;
        break;
    case 't':
        p = literal(p, end, "true", 4);
        break;
    case 'f':
        p = literal(p, end, "false", 5);
        break;
    case 'n':
        p = literal(p, end, "null", 4);
        break;
    default:
        p = number_end(p, end);
    }
    if (p == NULL)
        return NULL;
after:
    if (depth == 0)
        return p;
    p = blanks(p, end);
    if (p == end)
        return NULL;
    if (*p == ',') {
        p++;
        if (open[depth - 1] == '[')
            goto value;
        goto key;
    }
    if (*p != (open[depth - 1] == '[' ? ']' : '}'))
        return NULL;
    p++;
    depth--;
    goto after;
key:
    p = blanks(p, end);
    if (p == end || *p != '"')
        return NULL;
    p = string_end(p + 1, end, &has);
    if (p == NULL)
        return NULL;
    p = blanks(p + 1, end);
    if (p == end || *p != ':')
        return NULL;
    p++;
    goto value;
}

/* -- the fields of one body */

typedef struct {
    Bytes name, lower;         /* the name, and its lower case where that is ASCII */
    int32_t size, lower_size;  /* lower_size is -1 where the lower case is not ASCII */
    int32_t next;              /* the next field whose name differs only in case, or -1 */
    uint8_t first;             /* no field before differs only in case */
} Wanted;

typedef struct {
    int64_t value;
    Bytes spelling; /* of the key it came by; NULL while there is none */
    int32_t size;
    uint8_t kind, exact;
} Found;

typedef struct {
    Bytes key;
    int32_t size, field; /* the first of the fields that the key may mean; -1: not wanted */
    int plain;           /* it is the name of that field exactly, and means no other */
} Place;

static int same_letters(Bytes key, Bytes lower, int32_t size)
{
    for (int32_t at = 0; at < size; at++) {
        uint8_t c = key[at];
        if (c >= 'A' && c <= 'Z')
            c |= 0x20;
        if (c != lower[at])
            return 0;
    }
    return 1;
}

/* The first of the fields that a key may mean (names that differ only in case are chained), or -1. */
static int32_t meant(Bytes key, int32_t size, const Wanted *wanted, int32_t fields)
{
    for (int32_t at = 0; at < fields; at++) {
        const Wanted *one = &wanted[at];
        if (!one->first)
            continue;
        if (one->lower_size == size && same_letters(key, one->lower, size))
            return at;
        if (one->size == size && same(one->name, key, size))
            return at;
    }
    return -1;
}

/* Keep a value for one field: by its exact name the last one counts, else the first spelling, of that the last value. */
static inline void keep(Found *one, const Wanted *wanted, Bytes key, int32_t size, uint8_t kind, int64_t value)
{
    int exact = wanted->size == size && same(wanted->name, key, size);
    if (!exact && (one->exact || (one->spelling && (one->size != size || !same(one->spelling, key, size)))))
        return;
    if (!exact && kind == NUL)
        kind = ABSENT; /* null by another spelling is as good as nothing */
    *one = (Found){value, key, size, kind, (uint8_t)exact};
}

/* One wanted value: its end, or NULL. */
static inline Bytes wanted_value(Bytes p, Bytes end, Bytes data, uint8_t *kind, int64_t *value)
{
    if (p == end)
        return NULL;
    switch (*p) {
    case '"': {
        int has = 0;
        Bytes first = p + 1, close = string_end(first, end, &has);
        if (close == NULL)
            return NULL;
        *kind = has & HAS_ESCAPE ? ESCAPED : TEXT;
        *value = (int64_t)(first - data) << 32 | (int64_t)(close - first);
        return close + 1;
    }
    case 't':
        *kind = TRUE_;
        return literal(p, end, "true", 4);
    case 'f':
        *kind = FALSE_;
        return literal(p, end, "false", 5);
    case 'n':
        *kind = NUL;
        return literal(p, end, "null", 4);
    case '{': case '[': {
        Bytes last = value_end(p, end);
        if (last == NULL)
            return NULL;
        *kind = *p == '{' ? RECORD : ARRAY;
        *value = (int64_t)(p - data) << 32 | (int64_t)(last - p);
        return last;
    }
    default:
        return number(p, end, kind, value);
    }
}

/* Reads one body into `found`; 0 where it is slow. */
static int body(Bytes p, Bytes end, Bytes data, const Wanted *wanted, int32_t fields, Found *found, Place *places)
{
    int turn = 0, strange = 0;
    for (int32_t at = 0; at < fields; at++)
        found[at] = (Found){0};
    p = blanks(p, end);
    if (p == end || *p != '{')
        return 0;
    p = blanks(p + 1, end);
    if (p < end && *p == '}')
        return blanks(p + 1, end) == end;
    for (;; turn++) {
        int32_t field, size;
        int plain = 0;
        if (p == end || *p != '"')
            return 0;
        Bytes key = ++p;
        Place *place = turn < PLACES_MAX ? &places[turn] : NULL;
        if (place && place->key && end - p > place->size && p[place->size] == '"'
            && same(p, place->key, place->size)) {
            size = place->size; /* the bytes of a row before, which were a good key in ASCII without escapes */
            field = place->field;
            plain = place->plain;
        } else {
            int has = 0;
            Bytes close = string_end(p, end, &has);
            if (close == NULL || has & HAS_ESCAPE)
                return 0;
            size = (int32_t)(close - key);
            field = meant(key, size, wanted, fields);
            if (has & HAS_HIGH)
                strange = 1;
            else if (place)
                *place = (Place){key, size, field,
                                 field >= 0 && wanted[field].next < 0 && wanted[field].size == size
                                     && same(wanted[field].name, key, size)};
        }
        p = blanks(p + size + 1, end);
        if (p == end || *p != ':')
            return 0;
        p = blanks(p + 1, end);
        if (field < 0) {
            p = value_end(p, end);
            if (p == NULL)
                return 0;
        } else {
            uint8_t kind = ABSENT;
            int64_t value = 0;
            p = wanted_value(p, end, data, &kind, &value);
            if (p == NULL)
                return 0;
            if (plain)
                found[field] = (Found){value, key, size, kind, 1};
            else
                for (int32_t at = field; at >= 0; at = wanted[at].next)
                    keep(&found[at], &wanted[at], key, size, kind, value);
        }
        p = blanks(p, end);
        if (p == end)
            return 0;
        if (*p == ',') {
            p = blanks(p + 1, end);
            continue;
        }
        if (*p != '}' || blanks(p + 1, end) != end)
            return 0;
        break;
    }
    if (strange) /* a key outside ASCII may be another spelling of what is missing: the plain decoder looks */
        for (int32_t at = 0; at < fields; at++)
            if (!found[at].exact)
                return 0;
    return 1;
}

/* The wanted fields of `rows` bodies: body i is data[offsets[i]] up to data[offsets[i + 1]].

   Names lie one after the other in `names`, their lower cases in `lowers`; `shapes` has four numbers a field: the size of
   the name, that of the lower case (-1 where it is not ASCII), the next field whose name differs only in case (-1: none),
   and whether it is the first such. Writes, field by field, `rows` kinds and values (text and nested values: where they
   begin in `data` << 32 | their size), per field how often each kind occurs and how many bytes its texts have at most, and
   which rows are slow: their kinds are ABSENT. Returns the number of slow rows, or -1 without memory. */
int64_t headrace_json_columns(Bytes data, const int32_t *offsets, int64_t rows, int32_t fields, Bytes names, Bytes lowers,
                              const int32_t *shapes, uint8_t *kinds, int64_t *values, int64_t *counts, int64_t *text_sizes,
                              uint8_t *slow)
{
    Place places[PLACES_MAX];
    int64_t slow_rows = 0;
    size_t room = (size_t)(fields ? fields : 1);
    Wanted *wanted = calloc(room, sizeof *wanted);
    Found *found = calloc(room, sizeof *found);
    if (wanted == NULL || found == NULL) {
        free(wanted);
        free(found);
        return -1;
    }
    memset(places, 0, sizeof places);
    for (int32_t at = 0; at < fields; at++, shapes += 4) {
        wanted[at] = (Wanted){names, lowers, shapes[0], shapes[1], shapes[2], (uint8_t)shapes[3]};
        names += shapes[0];
        lowers += shapes[1] > 0 ? shapes[1] : 0;
    }
    for (int64_t row = 0; row < rows; row++) {
        int good = body(data + offsets[row], data + offsets[row + 1], data, wanted, fields, found, places);
        slow[row] = (uint8_t)!good;
        slow_rows += !good;
        for (int32_t at = 0; at < fields; at++) {
            uint8_t kind = good ? found[at].kind : ABSENT;
            int64_t value = good ? found[at].value : 0;
            kinds[(int64_t)at * rows + row] = kind;
            values[(int64_t)at * rows + row] = value;
            counts[at * KINDS + kind]++;
            if (kind == TEXT || kind == ESCAPED)
                text_sizes[at] += value & 0xFFFFFFFF;
        }
    }
    free(wanted);
    free(found);
    return slow_rows;
}

static uint8_t *put_code(uint8_t *out, uint32_t code)
{
    if (code < 0x80) {
        *out++ = (uint8_t)code;
    } else if (code < 0x800) {
        *out++ = (uint8_t)(0xC0 | code >> 6);
        *out++ = (uint8_t)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *out++ = (uint8_t)(0xE0 | code >> 12);
        *out++ = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        *out++ = (uint8_t)(0x80 | (code & 0x3F));
    } else {
        *out++ = (uint8_t)(0xF0 | code >> 18);
        *out++ = (uint8_t)(0x80 | (code >> 12 & 0x3F));
        *out++ = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        *out++ = (uint8_t)(0x80 | (code & 0x3F));
    }
    return out;
}

/* A checked text with escapes, written out; never longer than it was. */
static uint8_t *unescaped(Bytes p, Bytes end, uint8_t *out)
{
    while (p < end) {
        if (*p != '\\') {
            *out++ = *p++;
            continue;
        }
        uint8_t c = p[1];
        if (c == 'u') {
            uint32_t code = (uint32_t)hex4(p + 2, end);
            p += 6;
            if (code >= 0xD800 && code <= 0xDBFF) {
                code = 0x10000 + ((code - 0xD800) << 10) + ((uint32_t)hex4(p + 2, end) - 0xDC00);
                p += 6;
            }
            out = put_code(out, code);
            continue;
        }
        *out++ = c == 'b' ? '\b' : c == 'f' ? '\f' : c == 'n' ? '\n' : c == 'r' ? '\r' : c == 't' ? '\t' : c;
        p += 2;
    }
    return out;
}

/* The texts of one field as Arrow keeps them: `rows` + 1 offsets, and bytes. Rows that are no text get an empty one. */
void headrace_texts(Bytes data, const uint8_t *kinds, const int64_t *values, int64_t rows, int32_t *offsets, uint8_t *out)
{
    uint8_t *at = out;
    offsets[0] = 0;
    for (int64_t row = 0; row < rows; row++) {
        Bytes from = data + (values[row] >> 32);
        size_t size = (size_t)(values[row] & 0xFFFFFFFF);
        if (kinds[row] == TEXT) {
            memcpy(at, from, size);
            at += size;
        } else if (kinds[row] == ESCAPED) {
            at = unescaped(from, from + size, at);
        }
        offsets[row + 1] = (int32_t)(at - out);
    }
}

/* -- time */

#define TICKS_PER_S 10000000ll

static inline int two(Bytes p)
{
    unsigned tens = (unsigned)p[0] - '0', ones = (unsigned)p[1] - '0';
    return tens > 9 || ones > 9 ? -1 : (int)(tens * 10 + ones);
}

/* Ticks of YYYY-MM-DD[T ]hh:mm:ss[.digits][Z|+hh:mm|-hh:mm]; 0 where the text looks otherwise. Digits after the seventh
   decimal are cut. Days are counted from March, so that the leap day ends a year (see moments.days_from_civil). */
static int moment(Bytes p, int32_t size, int64_t *ticks)
{
    static const int lengths[] = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (size < 19 || size > 35)
        return 0;
    Bytes end = p + size;
    if (p[4] != '-' || p[7] != '-' || (p[10] != 'T' && p[10] != ' ') || p[13] != ':' || p[16] != ':')
        return 0;
    int century = two(p), years = two(p + 2), month = two(p + 5), day = two(p + 8);
    int hour = two(p + 11), minute = two(p + 14), second = two(p + 17);
    if ((century | years | month | day | hour | minute | second) < 0)
        return 0;
    int year = century * 100 + years;
    int leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (year < 1 || month < 1 || month > 12 || day < 1 || day > lengths[month] + (leap && month == 2))
        return 0;
    if (hour > 23 || minute > 59 || second > 59)
        return 0;
    p += 19;
    int64_t fraction = 0;
    if (p < end && *p == '.') {
        int64_t scale = TICKS_PER_S;
        Bytes first = ++p;
        for (; is_digit(p, end); p++) {
            scale /= 10;
            fraction += (*p - '0') * scale;
        }
        if (p == first)
            return 0;
    }
    int64_t shift = 0;
    if (p < end && *p == 'Z') {
        p++;
    } else if (end - p == 6 && (*p == '+' || *p == '-') && p[3] == ':') {
        int hours = two(p + 1), minutes = two(p + 4);
        if (hours < 0 || minutes < 0 || hours > 23 || minutes > 59)
            return 0;
        shift = (hours * 3600 + minutes * 60) * (*p == '-' ? -1 : 1);
        p += 6;
    }
    if (p != end)
        return 0;
    int64_t from_march = (month + 9) % 12, shifted = year - (month <= 2);
    int64_t days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + (153 * from_march + 2) / 5 + day - 1 - 719468;
    *ticks = (days * 86400 + hour * 3600 + minute * 60 + second - shift) * TICKS_PER_S + fraction;
    return 1;
}

/* Ticks per text (Arrow offsets and bytes) and whether it had a shape read here. Returns how many had. */
int64_t headrace_moments(Bytes data, const int32_t *offsets, int64_t rows, int64_t *ticks, uint8_t *good)
{
    int64_t found = 0;
    for (int64_t row = 0; row < rows; row++) {
        ticks[row] = 0;
        good[row] = (uint8_t)moment(data + offsets[row], offsets[row + 1] - offsets[row], &ticks[row]);
        found += good[row];
    }
    return found;
}
