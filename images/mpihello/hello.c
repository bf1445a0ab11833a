/*
 * Copyright: the hpc.dockerjob authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Each rank says where it runs; rank 0 sums all ranks as a proof that they really talk.
 * Usage: hello [SECONDS [STATUS]]: stay that long, then exit with that status.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int rank, size, length, sum = 0;
    char name[MPI_MAX_PROCESSOR_NAME];

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(name, &length);
    printf("rank %d of %d on %s\n", rank, size, name);
    fflush(stdout);
    if (argc > 1)
        sleep((unsigned)atoi(argv[1]));
    MPI_Reduce(&rank, &sum, 1, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0)
        printf("sum of ranks %d, expected %d\n", sum, size * (size - 1) / 2);
    MPI_Finalize();
    return argc > 2 ? atoi(argv[2]) : 0;
}
