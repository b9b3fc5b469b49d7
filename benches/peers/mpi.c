/* An MPI library as a subject: MPI_Send and MPI_Recv back and forth; windows of MPI_Isend and
 * MPI_Irecv, each answered, as OSU's programs have it. An error ends the job, which is MPI's
 * default. The rank is the side: arguments are those of pair.c without it. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pair.h"

enum { TAG = 1, WINDOW_MAX = 64 };

static void ping(void *self, int side, size_t bytes, long count)
{
    char *buffer = self;
    for (long i = 0; i < count; i++) {
        if (side == 0)
            MPI_Send(buffer, bytes, MPI_BYTE, 1, TAG, MPI_COMM_WORLD);
        MPI_Recv(buffer, bytes, MPI_BYTE, !side, TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (side == 1)
            MPI_Send(buffer, bytes, MPI_BYTE, 0, TAG, MPI_COMM_WORLD);
    }
}

static void stream(void *self, int side, size_t bytes, long count, long window)
{
    char *buffer = self;
    MPI_Request requests[WINDOW_MAX];
    if (window > WINDOW_MAX)
        fail("a window of %ld is too large", window);
    for (long done = 0; done < count; done += window) {
        for (long i = 0; i < window; i++) {
            if (side == 0)
                MPI_Isend(buffer, bytes, MPI_BYTE, 1, TAG, MPI_COMM_WORLD, &requests[i]);
            else
                MPI_Irecv(buffer, bytes, MPI_BYTE, 0, TAG, MPI_COMM_WORLD, &requests[i]);
        }
        MPI_Waitall(window, requests, MPI_STATUSES_IGNORE);
        if (side == 0)
            MPI_Recv(buffer, 1, MPI_BYTE, 1, TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        else
            MPI_Send(buffer, 1, MPI_BYTE, 0, TAG, MPI_COMM_WORLD);
    }
}

int main(int argc, char **argv)
{
    char rank_text[8], version[MPI_MAX_LIBRARY_VERSION_STRING];
    char *arguments[32] = {argv[0], rank_text};
    int rank, size, length, side;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size != 2)
        fail("these are %d ranks and not 2", size);
    if (argc + 1 > 31)
        fail("these are too many arguments");
    snprintf(rank_text, sizeof rank_text, "%d", rank);
    memcpy(arguments + 2, argv + 1, (argc - 1) * sizeof *argv);
    MPI_Get_library_version(version, &length);
    version[strcspn(version, "\n")] = 0;
    if (rank == 0)
        printf("version %s\n", version);
    char *buffer = aligned_alloc(4096, PAIR_BYTES_MAX);
    memset(buffer, 1, PAIR_BYTES_MAX);
    struct pair *pair = pair_open(argc + 1, arguments, &side);
    pair_run(pair, &(struct subject){buffer, ping, stream});
    MPI_Finalize();
    return 0;
}
