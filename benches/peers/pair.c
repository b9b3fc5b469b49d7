/* Floor and subject by turns, in the same two processes.
 *
 *   side 0 (one CPU)                    side 1 (another)
 *   | floor | subject | floor | subject | ...    a few milliseconds each
 *    \_______________/ one pair: one line of output
 *
 * How fast two CPUs hand a cache line to each other may change tenfold from second to second, so
 * what is compared is neighbours. Both sides map one file, in which side 0 says what comes next;
 * it is also what the floors of shared memory use.
 *
 * Arguments: SIDE FILE TRANSPORT [PAIRS MEASURE...], where TRANSPORT is shm, unix or tcp (which
 * floor), and MEASURE is latency:BYTES, bandwidth:BYTES or rate:BYTES. FILE has FILE_BYTES zeros.
 *
 * Output of side 0, and nothing else on a line that begins so:
 *
 *   pair MEASURE BYTES FLOOR SUBJECT    nanoseconds: of half a round trip for latency, of one
 *                                       message of a stream for bandwidth and rate
 *   done PAIRS                          all that was asked for is there
 */
#define _GNU_SOURCE
#include "pair.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LINE _Alignas(128)

/* Blocks last about this long; batches of round trips inside them are timed together, since
 * reading the clock takes as long as a short one. */
enum { BLOCK_NS = 4000000, BATCH = 16, BATCHES_MAX = 1 << 16 };
/* Messages under way: 64, as OSU's programs have it, but no more than 64 MiB of them. */
enum { WINDOW = 64, WINDOW_BYTES = 64 << 20 };
enum { RING_ENTRIES = 8192, RING_BATCH = 64 };
enum { BESIDE_BYTES = 56 };
enum { STREAM_BYTES = 64 << 10 };

enum step { PING, STREAM, END };

struct flag {
    LINE _Atomic uint64_t value;
    char bytes[BESIDE_BYTES];
};

struct shared {
    /* What comes next, written by side 0; side 1 begins when `number` grows. */
    LINE _Atomic uint64_t number;
    int step, of_floor;
    uint64_t bytes;
    long count, window;
    /* The last number that side 1 took to be the end; other steps have an end that both see. */
    LINE _Atomic uint64_t ended;
    /* Where side 1 listens: a TCP port, or any number once the Unix socket is there. */
    LINE _Atomic int port;
    struct flag flags[2];
    LINE _Atomic uint64_t head;
    LINE _Atomic uint64_t tail;
    LINE uint64_t ring[RING_ENTRIES];
    _Alignas(4096) char data[PAIR_BYTES_MAX];
};

enum { FILE_BYTES = 8 << 20 };
_Static_assert(sizeof(struct shared) <= FILE_BYTES, "the file holds what is shared");

struct pair {
    struct shared *shared;
    struct subject floor;
    int side, pairs, measures, socket;
    char **measure;
    uint64_t number, flag, head, tail;
    char *private;
    double *times;
};

void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "peers: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    /* MPI's launchers end the other side when one exits so. */
    _exit(1);
}

static double now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

/* ---- floor: shared memory ---- */

/* A raw flag, the bytes in its own line: the cache lines of a message have to travel once. */
static void flag_ping(void *self, int side, size_t bytes, long count)
{
    struct pair *pair = self;
    struct flag *own = &pair->shared->flags[side], *other = &pair->shared->flags[!side];
    uint64_t at = pair->flag;
    if (bytes > BESIDE_BYTES)
        fail("the floor of latency is for %d bytes at most", BESIDE_BYTES);
    for (long i = 0; i < count; i++) {
        at++;
        if (side == 0) {
            memcpy(own->bytes, pair->private, bytes);
            atomic_store_explicit(&own->value, at, memory_order_release);
        }
        while (atomic_load_explicit(&other->value, memory_order_acquire) != at)
            ;
        memcpy(pair->private, other->bytes, bytes);
        if (side == 1) {
            memcpy(own->bytes, pair->private, bytes);
            atomic_store_explicit(&own->value, at, memory_order_release);
        }
    }
    pair->flag = at;
}

static void await(_Atomic uint64_t *value, uint64_t at_least)
{
    while (atomic_load_explicit(value, memory_order_acquire) < at_least)
        ;
}

/* Eight bytes a message through a ring whose ends are told once a batch. */
static void ring_stream(struct pair *pair, int side, long count)
{
    struct shared *shared = pair->shared;
    while (count > 0) {
        long batch = count < RING_BATCH ? count : RING_BATCH;
        if (side == 0) {
            if (pair->head + batch > RING_ENTRIES)
                await(&shared->tail, pair->head + batch - RING_ENTRIES);
            for (long i = 0; i < batch; i++)
                shared->ring[(pair->head + i) % RING_ENTRIES] = pair->head + i;
            pair->head += batch;
            atomic_store_explicit(&shared->head, pair->head, memory_order_release);
        } else {
            uint64_t sum = 0;
            await(&shared->head, pair->tail + batch);
            for (long i = 0; i < batch; i++)
                sum += shared->ring[(pair->tail + i) % RING_ENTRIES];
            *(volatile uint64_t *)pair->private = sum;
            pair->tail += batch;
            atomic_store_explicit(&shared->tail, pair->tail, memory_order_release);
        }
        count -= batch;
    }
    if (side == 0)
        await(&shared->tail, pair->head);
}

/* One copy: the message lies in shared memory, and side 1 takes it into memory of its own. */
static void copy_stream(struct pair *pair, int side, size_t bytes, long count, long window)
{
    struct shared *shared = pair->shared;
    for (long i = 0; i < count; i++) {
        if (side == 0) {
            if (pair->head >= (uint64_t)window)
                await(&shared->tail, pair->head + 1 - window);
            pair->head++;
            atomic_store_explicit(&shared->head, pair->head, memory_order_release);
        } else {
            await(&shared->head, pair->tail + 1);
            memcpy(pair->private, shared->data, bytes);
            pair->tail++;
            atomic_store_explicit(&shared->tail, pair->tail, memory_order_release);
        }
    }
    if (side == 0)
        await(&shared->tail, pair->head);
}

static void memory_stream(void *self, int side, size_t bytes, long count, long window)
{
    if (bytes == sizeof(uint64_t))
        ring_stream(self, side, count);
    else
        copy_stream(self, side, bytes, count, window);
}

/* ---- floor: sockets ---- */

static void socket_send(int socket, const char *from, size_t bytes)
{
    while (bytes > 0) {
        ssize_t sent = send(socket, from, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            fail("cannot send: %s", strerror(errno));
        if (sent > 0) {
            from += sent;
            bytes -= sent;
        }
    }
}

/* Returns how many of up to `bytes` bytes came first. */
static size_t socket_receive_some(int socket, char *to, size_t bytes)
{
    for (;;) {
        ssize_t got = recv(socket, to, bytes, MSG_DONTWAIT);
        if (got > 0)
            return got;
        if (got == 0)
            fail("the other side is gone");
        if (errno != EAGAIN && errno != EINTR)
            fail("cannot receive: %s", strerror(errno));
    }
}

static void socket_receive(int socket, char *to, size_t bytes)
{
    while (bytes > 0) {
        size_t got = socket_receive_some(socket, to, bytes);
        to += got;
        bytes -= got;
    }
}

static void socket_ping(void *self, int side, size_t bytes, long count)
{
    struct pair *pair = self;
    for (long i = 0; i < count; i++) {
        if (side == 0)
            socket_send(pair->socket, pair->private, bytes);
        socket_receive(pair->socket, pair->private, bytes);
        if (side == 1)
            socket_send(pair->socket, pair->private, bytes);
    }
}

/* The bare stream of as many bytes: as much per call as goes, 64 KiB or a message, and always from
 * and into the same memory, as the subjects' buffers are used again, too. */
static void socket_stream(void *self, int side, size_t bytes, long count, long window)
{
    struct pair *pair = self;
    size_t left = bytes * count, most = bytes > STREAM_BYTES ? bytes : STREAM_BYTES;
    (void)window;
    while (left > 0) {
        size_t part = left < most ? left : most;
        if (side == 0)
            socket_send(pair->socket, pair->private, part);
        else
            part = socket_receive_some(pair->socket, pair->private, part);
        left -= part;
    }
    if (side == 0)
        socket_receive(pair->socket, pair->private, 1);
    else
        socket_send(pair->socket, pair->private, 1);
}

static socklen_t unix_name(const char *file, struct sockaddr_un *name)
{
    *name = (struct sockaddr_un){.sun_family = AF_UNIX};
    /* Abstract: the first byte stays 0, and no file is left behind. */
    size_t length = strlen(file);
    if (length > sizeof name->sun_path - 1)
        fail("%s is too long a name", file);
    memcpy(name->sun_path + 1, file, length);
    return offsetof(struct sockaddr_un, sun_path) + 1 + length;
}

static int socket_accept(struct pair *pair, int listener, int port)
{
    if (listen(listener, 1) != 0)
        fail("cannot listen: %s", strerror(errno));
    atomic_store(&pair->shared->port, port);
    int accepted = accept(listener, NULL, NULL);
    if (accepted < 0)
        fail("cannot accept: %s", strerror(errno));
    close(listener);
    return accepted;
}

static int socket_join(struct pair *pair, int family, struct sockaddr *name, socklen_t length)
{
    int made = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (made < 0)
        fail("cannot make a socket: %s", strerror(errno));
    if (pair->side == 1) {
        if (bind(made, name, length) != 0 || getsockname(made, name, &length) != 0)
            fail("cannot bind: %s", strerror(errno));
        int port = family == AF_INET ? ((struct sockaddr_in *)name)->sin_port : 1;
        return socket_accept(pair, made, port);
    }
    int port;
    while ((port = atomic_load(&pair->shared->port)) == 0)
        ;
    if (family == AF_INET)
        ((struct sockaddr_in *)name)->sin_port = port;
    if (connect(made, name, length) != 0)
        fail("cannot connect: %s", strerror(errno));
    return made;
}

/* ---- by turns ---- */

struct pair *pair_open(int argc, char **argv, int *side)
{
    if (argc < 4)
        fail("usage: %s SIDE FILE TRANSPORT [PAIRS MEASURE...]", argv[0]);
    struct pair *pair = calloc(1, sizeof *pair);
    const char *file = argv[2], *transport = argv[3];
    *side = pair->side = atoi(argv[1]);
    if (argc > 4) {
        pair->pairs = atoi(argv[4]);
        pair->measures = argc - 5;
        pair->measure = argv + 5;
    }
    pair->times = calloc(BATCHES_MAX, sizeof *pair->times);
    pair->private = aligned_alloc(4096, PAIR_BYTES_MAX);
    memset(pair->private, 1, PAIR_BYTES_MAX);
    int opened = open(file, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (opened < 0 || fstat(opened, &status) != 0 || status.st_size != FILE_BYTES)
        fail("%s is no file of %d bytes", file, FILE_BYTES);
    pair->shared = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, opened, 0);
    if (pair->shared == MAP_FAILED)
        fail("cannot map %s: %s", file, strerror(errno));
    close(opened);
    if (pair->side == 0)
        memset(pair->shared->data, 1, PAIR_BYTES_MAX);
    pair->floor = (struct subject){pair, socket_ping, socket_stream};
    if (strcmp(transport, "shm") == 0) {
        pair->floor = (struct subject){pair, flag_ping, memory_stream};
    } else if (strcmp(transport, "unix") == 0) {
        struct sockaddr_un name;
        socklen_t length = unix_name(file, &name);
        pair->socket = socket_join(pair, AF_UNIX, (struct sockaddr *)&name, length);
    } else if (strcmp(transport, "tcp") == 0) {
        struct sockaddr_in name = {.sin_family = AF_INET};
        name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        pair->socket = socket_join(pair, AF_INET, (struct sockaddr *)&name, sizeof name);
        int yes = 1;
        setsockopt(pair->socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    } else {
        fail("%s is none of shm, unix, tcp", transport);
    }
    return pair;
}

static int time_compare(const void *one, const void *other)
{
    double difference = *(const double *)one - *(const double *)other;
    return (difference > 0) - (difference < 0);
}

/* One block, led by side 0: nanoseconds of one round trip (the median over batches), or of one
 * message. */
static double block(struct pair *pair, const struct subject *subject, enum step step, size_t bytes,
                    long count, long window)
{
    struct shared *shared = pair->shared;
    shared->step = step;
    shared->of_floor = subject == &pair->floor;
    shared->bytes = bytes;
    shared->count = count;
    shared->window = window;
    atomic_store_explicit(&shared->number, ++pair->number, memory_order_release);
    double from = now_ns();
    if (step == STREAM) {
        subject->stream(subject->self, 0, bytes, count, window);
        return (now_ns() - from) / count;
    }
    long batches = count / BATCH;
    for (long i = 0; i < batches; i++) {
        subject->ping(subject->self, 0, bytes, BATCH);
        double now = now_ns();
        pair->times[i] = now - from;
        from = now;
    }
    qsort(pair->times, batches, sizeof *pair->times, time_compare);
    return pair->times[batches / 2] / BATCH;
}

/* How many make about a block: the last of two goes, since the first may have to warm up. */
static long count_find(struct pair *pair, const struct subject *subject, enum step step,
                       size_t bytes, long unit, long window)
{
    long count = unit, most = step == PING ? (long)BATCH * BATCHES_MAX : 1L << 24;
    for (;;) {
        double from = now_ns();
        block(pair, subject, step, bytes, count, window);
        double took = now_ns() - from;
        if (took > BLOCK_NS / 4) {
            from = now_ns();
            block(pair, subject, step, bytes, count, window);
            took = now_ns() - from;
            long scaled = count * (BLOCK_NS / took) / unit;
            scaled = scaled < 1 ? unit : scaled * unit;
            return scaled < most ? scaled : most / unit * unit;
        }
        if (count * 2 > most)
            return count;
        count *= 2;
    }
}

static void measure(struct pair *pair, const struct subject *subject, const char *name,
                    size_t bytes)
{
    int latency = strcmp(name, "latency") == 0;
    if (!latency && strcmp(name, "rate") != 0 && strcmp(name, "bandwidth") != 0)
        fail("%s is none of latency, bandwidth, rate", name);
    if (bytes == 0 || bytes > PAIR_BYTES_MAX)
        fail("%zu bytes are not between 1 and %d", bytes, PAIR_BYTES_MAX);
    enum step step = latency ? PING : STREAM;
    long window = WINDOW_BYTES / bytes < WINDOW ? WINDOW_BYTES / bytes : WINDOW;
    long unit = latency ? BATCH : window;
    long floors = count_find(pair, &pair->floor, step, bytes, unit, window);
    long subjects = subject ? count_find(pair, subject, step, bytes, unit, window) : 0;
    for (int i = 0; i < pair->pairs; i++) {
        double figures[2] = {0, 0};
        figures[0] = block(pair, &pair->floor, step, bytes, floors, window);
        if (subject)
            figures[1] = block(pair, subject, step, bytes, subjects, window);
        double part = latency ? 2 : 1;
        printf("pair %s %zu %.3f %.3f\n", name, bytes, figures[0] / part, figures[1] / part);
    }
}

static void lead(struct pair *pair, const struct subject *subject)
{
    for (int i = 0; i < pair->measures; i++) {
        char name[16];
        size_t bytes;
        if (sscanf(pair->measure[i], "%15[a-z]:%zu", name, &bytes) != 2)
            fail("%s is not MEASURE:BYTES", pair->measure[i]);
        measure(pair, subject, name, bytes);
    }
    pair->shared->step = END;
    atomic_store_explicit(&pair->shared->number, ++pair->number, memory_order_release);
    await(&pair->shared->ended, pair->number);
    printf("done %d\n", pair->pairs * pair->measures);
    fflush(stdout);
}

static void follow(struct pair *pair, const struct subject *subject)
{
    struct shared *shared = pair->shared;
    for (;;) {
        await(&shared->number, ++pair->number);
        const struct subject *chosen = shared->of_floor ? &pair->floor : subject;
        if (shared->step == END) {
            atomic_store_explicit(&shared->ended, pair->number, memory_order_release);
            return;
        }
        size_t bytes = shared->bytes;
        long count = shared->count, window = shared->window;
        if (shared->step == PING)
            chosen->ping(chosen->self, 1, bytes, count);
        else
            chosen->stream(chosen->self, 1, bytes, count, window);
    }
}

void pair_run(struct pair *pair, const struct subject *subject)
{
    if (pair->side == 0)
        lead(pair, subject);
    else
        follow(pair, subject);
}

void pair_serve(struct pair *pair)
{
    char line[64], name[sizeof line];
    pair->measure = (char *[]){name};
    pair->measures = 1;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%63s %d", name, &pair->pairs) != 2)
            fail("%s is not MEASURE:BYTES PAIRS", line);
        pair_run(pair, NULL);
    }
}
