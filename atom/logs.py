import os, logging
def redirect_output(folder, rank):
    fd=os.open(folder/f"rank_{rank}.txt", os.O_WRONLY|os.O_CREAT|os.O_APPEND); os.dup2(fd,1); os.dup2(fd,2)
def setup_rank(folder, rank, *, verbose=False):
    logging.basicConfig(level=logging.INFO, force=True)
