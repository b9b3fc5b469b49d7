/*
 * A reduction: each invocation adds a vector of integers to the one that the process keeps. The
 * same functions, inputs and outputs as in examples/reduction, where they are written in Rust:
 *
 *     add    a vector: 64-bit signed integers, little-endian, one after the other -> nothing
 *     sum    nothing -> the sum of all vectors, in the same form; empty if there are none
 *     clear  nothing -> nothing; the sum is forgotten
 *
 * All vectors of a sum are equally long. Integers wrap around.
 */
#include "praas.h"

#define SUM "sum"

/* new = old + vector, by 64-bit integers at any place; the loop becomes vector code. */
static void vector_add(uint8_t *fresh, const uint8_t *old, const uint8_t *vector, size_t len)
{
    size_t at;
    for (at = 0; at < len; at += 8) {
        uint64_t a = praas_u64_read(old + at) + praas_u64_read(vector + at);
        memcpy(fresh + at, &a, sizeof a);
    }
}

/*
 * The new sum is written once, in the memory where it stays. Two functions that add at the same
 * time both count: who comes second is told of a conflict, and adds to what the first has made.
 */
PRAAS_FUNCTION(add, 0)
{
    uint8_t *fresh = NULL;
    int32_t code;
    if (input.len == 0 || input.len % 8 != 0) {
        return praas_error(call, host, "a vector has 8 bytes an integer");
    }
    code = host->state_alloc(call, input.len, &fresh);
    if (code != PRAAS_OK) {
        return praas_error_pass(call, host, code);
    }
    do {
        praas_raw_view old = praas_view_none();
        uint64_t expected;
        code = host->state_view(call, praas_text(SUM), &old);
        if (code == PRAAS_NOT_FOUND) {
            memcpy(fresh, input.ptr, input.len);
        } else if (code != PRAAS_OK) {
            return praas_error_pass(call, host, code);
        } else if (old.bytes.len != input.len) {
            praas_view_end(host, &old);
            return praas_error(call, host, "the sum and the vector differ in length");
        } else {
            vector_add(fresh, old.bytes.ptr, input.ptr, input.len);
        }
        expected = old.version;
        praas_view_end(host, &old);
        code = host->state_commit(call, praas_text(SUM), expected, NULL);
        if (code == PRAAS_CONFLICT && host->cancelled(call)) {
            return PRAAS_STATUS_CANCELLED;
        }
    } while (code == PRAAS_CONFLICT);
    return code == PRAAS_OK ? PRAAS_OK : praas_error_pass(call, host, code);
}

PRAAS_FUNCTION(sum, PRAAS_FLAG_IDEMPOTENT)
{
    praas_raw_view sum = praas_view_none();
    int32_t code = host->state_view(call, praas_text(SUM), &sum);
    if (code == PRAAS_NOT_FOUND) {
        return PRAAS_OK;
    }
    if (code == PRAAS_OK) {
        code = praas_output(call, host, sum.bytes.ptr, sum.bytes.len);
    }
    praas_view_end(host, &sum);
    return code == PRAAS_OK ? PRAAS_OK : praas_error_pass(call, host, code);
}

PRAAS_FUNCTION(clear, PRAAS_FLAG_IDEMPOTENT)
{
    int32_t code = host->state_delete(call, praas_text(SUM));
    return code == PRAAS_OK || code == PRAAS_NOT_FOUND ? PRAAS_OK
                                                       : praas_error_pass(call, host, code);
}

PRAAS_MODULE("reduction", PRAAS_USE(add), PRAAS_USE(sum), PRAAS_USE(clear));
