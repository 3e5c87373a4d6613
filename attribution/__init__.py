"""Attribution by unlearning: which training images is this generated picture made of?"""
