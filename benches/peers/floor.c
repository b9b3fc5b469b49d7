/* The floors alone, for the blocks before and after a program that has none inside. */
#include "pair.h"

int main(int argc, char **argv)
{
    int side;
    struct pair *pair = pair_open(argc, argv, &side);
    pair_serve(pair);
    return 0;
}
