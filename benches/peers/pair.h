/* Two processes that measure a subject and the floor beneath it by turns; see pair.c. */
#ifndef PRAAS_PEERS_PAIR_H
#define PRAAS_PEERS_PAIR_H

#include <stddef.h>

/* What is measured: a way for bytes between side 0, which leads and keeps the time, and side 1.
 * Each function is called on both sides with the same numbers, and ends the program if it fails. */
struct subject {
    void *self;
    /* `count` round trips of `bytes` bytes: side 0 sends first. */
    void (*ping)(void *self, int side, size_t bytes, long count);
    /* `count` messages of `bytes` bytes from side 0 to side 1, up to `window` of them under way
     * at a time (`count` is a multiple of it); side 0 returns when side 1 has all of them. */
    void (*stream)(void *self, int side, size_t bytes, long count, long window);
};

struct pair;

/* Room for any message of any measure. */
enum { PAIR_BYTES_MAX = 4 << 20 };

/* Joins the other side: arguments are SIDE FILE TRANSPORT [PAIRS MEASURE...], see pair.c. */
struct pair *pair_open(int argc, char **argv, int *side);

/* Measures all that the arguments ask for; side 0 prints it. */
void pair_run(struct pair *pair, const struct subject *subject);

/* Measures the floor alone, as each line of standard input says: MEASURE:BYTES PAIRS. Both sides
 * are given the same lines; between them neither uses its CPU. */
void pair_serve(struct pair *pair);

/* Says what is wrong and ends the program. */
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

#endif
